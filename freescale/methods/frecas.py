"""FreCaS (arXiv:2410.18410): levels that are left early and restarted with more noise, guided by frequency.

A level hands over its x0 before its end. A picture enlarged by rho has rho^2 cells for one, so the next level starts at
a higher noise level (`walk.shifted`, section "Cascaded sampling"). Above level 0 guidance is strong for frequencies
that the level below could not hold, and plain for the others (FA-CFG).

The release also mixes in the cross-attention maps of the level below, with its tokens in the wrong order. That part is
left out, which is its weight w_c = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.cascade import CELL, cascade_sizes
from freescale.enlarge import PictureFilter
from freescale.methods.base import FeatureLevels, Method
from freescale.structure import low_band
from freescale.walk import along, shifted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver


@dataclass(frozen=True)
class FreCaS(Method):
    """Relay, shifted noise levels, and frequency-aware guidance."""

    name: ClassVar[str] = "frecas"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    asks_sizes: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    shift: float | None = None  # gamma; None: 1.5 with two levels, 2 with more (SDXL); SD 2.1: 3
    high_guidance: float = 4.667  # w_h: factor of the guidance scale for high frequencies; released: 35 for 7.5
    low_guidance: float = 1.0  # w_l: for low ones
    filter: PictureFilter = "nearest"
    clamp: bool = True  # pixels to [-1, 1] before they are enlarged
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.shift is not None and self.shift < 0.0:
            raise ValueError(f"shift is {self.shift}, allowed: 0 or more")
        for name in ("high_guidance", "low_guidance"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more")
        self.check_choices({"filter": get_args(PictureFilter), "posterior": ("sample", "mode")})

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM without fresh noise."""
        return "ddim", 0.0

    @property
    def picture_filter(self) -> PictureFilter:
        """The filter."""
        return self.filter

    @property
    def clamps(self) -> bool:
        """As `clamp` has it."""
        return self.clamp

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the level's own size, as released."""
        return sizes[level]

    def at_base(self) -> FreCaS:
        """Return the defaults: level 0 depends on its walk alone."""
        return FreCaS()

    def at_start(self) -> FreCaS:
        """Return the defaults: a level starts at the first noise level of its walk."""
        return FreCaS()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return whole timesteps in equal strides, from the level's start to where it is left, both ends included."""
        if len(sizes) == 1:
            return schedule
        first, last = float(schedule.num_train_timesteps - 1), self.left_at(schedule, level, len(sizes))
        if level > 0:
            growth = max(new / old for new, old in zip(sizes[level], sizes[level - 1], strict=True))
            gamma = (1.5 if len(sizes) == 2 else 2.0) if self.shift is None else self.shift
            first = shifted(schedule, self.left_at(schedule, level - 1, len(sizes)), growth, gamma)
        count = self.steps_of(len(schedule), level, len(sizes))
        strides = max(count - 1, 1)
        return along(schedule, [float(round(first + (last - first) * i / strides)) for i in range(count)])

    def left_at(self, schedule: Schedule, level: int, levels: int) -> float:
        """Return the timestep that a level is left at: 0 at the last, before it 200 of 1000, and before that 400."""
        return (0.0, 0.2, 0.4)[min(levels - 1 - level, 2)] * schedule.num_train_timesteps

    def steps_of(self, steps: int, level: int, levels: int) -> int:
        """Return a level's number of steps, at least 2: 40 and 10 of 50, or 30, 5 and 15; more levels take 5 each."""
        share = {0: 0.8 if levels == 2 else 0.6, levels - 1: 0.2 if levels == 2 else 0.3}.get(level, 0.1)
        return max(2, round(share * steps))

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, above level 0 with FA-CFG: w_l for what the level below can hold, w_h for the rest."""
        level = moment.level
        if level.is_base or not level.sizes or not denoiser.is_guided(moment.step, moment.schedule):
            return denoiser(latents, moment.step, moment.schedule)
        negative, positive = denoiser.pair(latents, moment.step, moment.schedule)
        below = level.sizes[level.index - 1]
        grid = below[0] // level.cell, below[1] // level.cell
        difference = positive - negative
        low = low_band(difference, grid, "aliased")
        weighted = self.high_guidance * difference + (self.low_guidance - self.high_guidance) * low
        return moment.schedule.to_noise(denoiser.combine(negative, negative + weighted), latents, moment.step)
