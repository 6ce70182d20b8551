"""Clean reference -> noisy latents at the restart step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freescale import Moment, video_noise
from stages.denoise import LATENT_AXES, Sampling
from stages.stage import Parents, Stage, Tensors, level_of, method_of

if TYPE_CHECKING:
    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class Renoise(Stage):
    """{"latents": (1, C, [F,] h, w)}: the method's start of a level: reference + sigma * noise at the restart."""

    name = "renoise"
    axes = LATENT_AXES

    seed: int
    level: int
    size: tuple[int, int]
    base_size: tuple[int, int]
    sampling: Sampling
    method: dict[str, Any]
    start: int

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """One noise a level, keyed by (seed, level); the denoising stages draw the same one again."""
        reference = parents["reference"]["latents"]
        frames = models.info.frames
        noise = video_noise(tuple(reference.shape), frames, self.seed, "restart_noise", self.level)
        level = level_of(self.level, self.size, self.base_size, frames, reference=reference, noise=noise)
        moment = Moment(level=level, step=self.start, schedule=self.sampling.schedule(models), seed=self.seed)
        return {"latents": method_of(self.method).start(tuple(reference.shape), moment)}
