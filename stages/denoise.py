"""What the three denoising stages share: the loop over one span of steps of one level.

`base_denoise` runs all steps at the first size; at every further level `highres_denoise` runs from the restart to
the end of dilation and `detail_pass` from there to the end. The boundary is a stage boundary, so a detail pass can
be made again from its checkpoint with another mask or scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale import Denoiser, Level, Schedule, Step, denoise, make_schedule, region_map, video_noise
from stages.conditioning import conditioning
from stages.errors import StageError
from stages.stage import Parents, Running, Stage, Tensors, level_of, method_of

if TYPE_CHECKING:
    from freescale import Method, Solver
    from stages.models.load import Models
    from stages.spec import RunOptions

LATENT_AXES = {"latents": "BChw"}


@dataclass(frozen=True)
class Sampling:
    """How the noise is taken away, at every level alike."""

    steps: int
    solver: Solver
    eta: float
    guidance_scale: float
    guidance_rescale: float

    def schedule(self, models: Models) -> Schedule:
        """The noise levels of this model for these steps."""
        return make_schedule(models.info.scheduler, self.steps, self.solver, self.eta)


@dataclass(frozen=True)
class DenoiseStage(Stage):
    """Steps `start` to `stop` of a level, under the method's patches, blend and prediction."""

    part = "unet"
    axes = LATENT_AXES

    seed: int
    level: int
    size: tuple[int, int]
    base_size: tuple[int, int]
    sampling: Sampling
    method: dict[str, Any]
    start: int
    stop: int
    time_ids: tuple[int, int] | None
    regions: tuple[tuple[str, float], ...] = ()  # (parent that holds the mask, detail scale inside it)
    motion_fps: float | None = None  # told to a video model with an fps branch

    @property
    def span(self) -> tuple[int, int]:
        """First step and one past the last."""
        return self.start, self.stop

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Running:
        """Yield a `Step` after each step; return {"latents": (1, C, [F,] h, w)} in float32, noise level by sigma."""
        method, schedule = method_of(self.method), self.sampling.schedule(models)
        level = self._level(parents, method, models)
        denoiser = Denoiser(
            models.unet,
            conditioning(parents["text"], self.time_ids, next(models.unet.parameters()), self.motion_fps),
            guidance_scale=self.sampling.guidance_scale,
            guidance_rescale=self.sampling.guidance_rescale,
            split_guidance=options.split_guidance,
            window_rows=options.window_rows,
            feed_forward_tokens=options.feed_forward_tokens,
            phase_convs=options.phase_convs,
        )
        if resume is None:
            resume = Step(self.start - 1, self._first(parents, method, schedule, level, models))
        latents = resume.latents.to(models.device)
        loop = denoise(
            denoiser,
            latents,
            schedule,
            method,
            level,
            seed=self.seed,
            start=resume.index + 1,
            stop=self.stop,
            history=tuple(h.to(models.device) for h in resume.history),
        )
        for step in loop:
            latents = step.latents
            if not torch.isfinite(latents).all():
                raise StageError(f"{self.name} level {self.level}: latents are not finite after step {step.index + 1}")
            yield step
        return {"latents": latents.float().cpu()}

    def _first(self, parents: Parents, method: Method, schedule: Schedule, level: Level, models: Models) -> Any:
        return parents["latents"]["latents"].to(models.device)

    def _level(self, parents: Parents, method: Method, models: Models) -> Level:
        frames = models.info.frames
        if self.level == 0 or "reference" not in parents:
            return level_of(self.level, self.size, self.base_size, frames)
        reference = parents["reference"]["latents"]
        noise = video_noise(tuple(reference.shape), frames, self.seed, "restart_noise", self.level)
        tensors: Tensors = {"reference": reference.to(models.device), "noise": noise.to(models.device)}
        if "anchor" in parents:
            tensors["anchor"] = parents["anchor"]["latents"].to(models.device)
        if self.regions:
            masks = [parents[role]["picture"][..., 0].float() / 255 for role, _ in self.regions]
            rest = float(self.method["detail_scale"])
            scales = [scale for _, scale in self.regions]
            cells = (self.size[0] // 8, self.size[1] // 8)
            tensors["detail_map"] = region_map(masks, scales, rest, cells).to(models.device)
        return level_of(self.level, self.size, self.base_size, frames, **tensors)
