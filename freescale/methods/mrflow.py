"""MrFlow's shape (arXiv:2607.01642): sample small, enlarge in pixels with a network, and one step from little noise.

The paper has it for flow transformers: 12 or 20 steps at half the size, a network that doubles pixels, and one step
from noise level 0.12 of its flow, which is sigma = 0.136 here. Level 0's steps are those of the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.cascade import CELL, jump_sizes
from freescale.enlarge import PictureFilter
from freescale.guidance import scaled_guidance
from freescale.methods.base import FeatureLevels, Method, of_reference
from freescale.noise_levels import timestep_of
from freescale.walk import descent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule


@dataclass(frozen=True)
class MrFlow(Method):
    """One jump, enlarged by a network where a file of one is given, and one step from little noise."""

    name: ClassVar[str] = "mrflow"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    sigma: float = 0.136  # noise level that the target starts at: 0.12 of a flow, sigma = t / (1 - t)
    steps: int = 1  # at the target, in equal strides of timesteps
    guidance: float = 1.0  # factor of the guidance scale there; 0: no guidance, one UNet call for two
    filter: PictureFilter = "bicubic"  # where no network enlarges
    upscaler: str | None = of_reference()  # a file of a network that enlarges; released: Real-ESRGAN
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.sigma <= 0.0 or self.guidance < 0.0 or self.steps < 1:
            given = f"sigma {self.sigma}, steps {self.steps}, guidance {self.guidance}"
            raise ValueError(f"{given}, allowed: sigma above 0, steps of 1 or more, guidance of 0 or more")
        self.check_choices({"filter": get_args(PictureFilter), "posterior": ("sample", "mode")})

    @property
    def picture_filter(self) -> PictureFilter:
        """The filter."""
        return self.filter

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size and the target."""
        return jump_sizes(size, base_size)

    def at_base(self) -> MrFlow:
        """Return the defaults: level 0 is plain sampling."""
        return MrFlow()

    def at_start(self) -> MrFlow:
        """Return the defaults: a level starts at the first noise level of its walk."""
        return MrFlow()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the schedule for level 0, above it steps from `sigma` to 0."""
        if level == 0:
            return schedule
        return descent(schedule, timestep_of(schedule.train_sigmas, self.sigma), self.steps)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, above level 0 with its own guidance."""
        if not moment.level.is_base and moment.level.factor > 1.0:
            denoiser = scaled_guidance(denoiser, self.guidance)
        return denoiser(latents, moment.step, moment.schedule)
