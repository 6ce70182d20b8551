"""FAM diffusion (arXiv:2411.18552): one jump to the target, low frequencies held in Fourier space ("frequency
modulation").

All steps are taken at the target. Before each, the latents are moved towards the enlarged picture noised to that step,
for frequencies inside a box around 0 alone. The box and the pull in it grow as the noise falls.

The paper's attention modulation, which mixes in the self-attention maps of a render at the training size, is left out:
it holds a map of tokens^2 numbers for each layer and step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from freescale.cascade import CELL, jump_sizes
from freescale.forward_process import renoise
from freescale.frequency import box_mask, fourier_filter
from freescale.methods.base import FeatureLevels, Method

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.cascade import Size
    from freescale.moment import Moment


@dataclass(frozen=True)
class FAM(Method):
    """Frequency modulation of the latents, at every step of the schedule."""

    name: ClassVar[str] = "fam"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    cutoff: float = 0.5  # c: of the box, which at the end is this share of the spectrum on each axis; 0: no pull
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.cutoff <= 1.0:
            raise ValueError(f"cutoff is {self.cutoff}, allowed: 0 to 1")
        self.check_choices({"posterior": ("sample", "mode")})

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size and the target."""
        return jump_sizes(size, base_size)

    def at_base(self) -> FAM:
        """Return the defaults: level 0 is plain sampling."""
        return FAM()

    def at_start(self) -> FAM:
        """Return the defaults: a level starts at the first step."""
        return FAM()

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return z + IDFT((1 - K) (DFT(R + sigma n) - DFT(z))), with K = t / T inside the box and 1 outside of it."""
        level = moment.level
        if level.reference is None or level.noise is None or level.factor <= 1.0:
            return latents
        left = 1.0 - moment.timestep / moment.schedule.num_train_timesteps
        anchor = renoise(level.reference.to(latents), level.noise, moment.sigma)
        h, w = level.latent_hw
        half = (h * self.cutoff * left / 2, w * self.cutoff * left / 2)
        box = box_mask((h, w), half, latents.dtype, latents.device)
        return latents + left * fourier_filter(anchor - latents, box)
