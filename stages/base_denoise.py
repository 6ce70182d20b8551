"""Noise -> latents at the first size of the cascade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freescale import Moment
from stages.denoise import DenoiseStage
from stages.stage import latent_shape

if TYPE_CHECKING:
    from freescale import Level, Method, Schedule
    from stages.models.load import Models
    from stages.stage import Parents


@dataclass(frozen=True)
class BaseDenoise(DenoiseStage):
    """All steps, from the method's first latents (seeded noise) to clean ones."""

    name = "base_denoise"

    frames: int | None = None  # of a video

    def _first(self, parents: Parents, method: Method, schedule: Schedule, level: Level, models: Models) -> Any:
        moment = Moment(level=level, step=self.start, schedule=schedule, seed=self.seed)
        shape = latent_shape(self.size, models.info.latent_channels, self.frames)
        return method.start(shape, moment).to(models.device)
