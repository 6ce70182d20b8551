"""Clean reference -> noisy latents at the restart step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freescale import Level, Moment, video_noise
from freescale.flow_levels import rule_at
from stages.stage import LATENT_AXES, Parents, Stage, Tensors, added, method_of

if TYPE_CHECKING:
    from freescale import Step
    from freescale.flow_levels import ShiftRule
    from stages.denoise import Sampling, Walk
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class Renoise(Stage):
    """{"latents": (1, C, [F,] h, w)}: a level's first latents, reference + sigma * noise at the restart step."""

    name = "renoise"
    axes = LATENT_AXES

    seed: int
    level: int
    size: tuple[int, int]
    base_size: tuple[int, int]
    sampling: Sampling
    method: dict[str, Any]
    start: int
    walk: Walk = added(())
    shift_rule: ShiftRule | None = added(None)  # of a flow model's noise levels; None: the method's

    def params(self) -> dict[str, Any]:
        """The parameters that decide the bytes, as JSON has them."""
        return {**super().params(), "sampling": json.loads(json.dumps(self.sampling.record()))}

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Add the level's noise, which is keyed by (seed, level): the denoising stages draw it again."""
        reference = parents["reference"]["latents"]
        frames, cell = models.info.latent_frames, models.info.cell
        noise = video_noise(tuple(reference.shape), frames, self.seed, "restart_noise", self.level)
        level = Level(self.level, self.size, self.base_size, cell, reference=reference, noise=noise, frames=frames)
        method = method_of(self.method)
        rule = self.shift_rule or rule_at(method.shift_rule, self.level)
        schedule = self.sampling.schedule(models.info, self.walk, self.size, self.base_size, rule)
        moment = Moment(level=level, step=self.start, schedule=schedule, seed=self.seed)
        return {"latents": method.start(tuple(reference.shape), moment)}
