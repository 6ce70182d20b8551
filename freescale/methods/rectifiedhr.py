"""RectifiedHR (arXiv:2503.02537): one walk through the schedule, at sizes that grow on the way, with rising guidance.

The schedule's steps are shared out among the levels: a level leaves with its x0, which is decoded, enlarged, encoded
and noised to the step that comes next ("noise refresh"). Each refresh takes energy from the latents, the mean of their
square; more guidance above level 0 gives it back ("energy rectification").
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.cascade import CELL, growth_between, sizes_between
from freescale.enlarge import PictureFilter
from freescale.guidance import scaled_guidance
from freescale.methods.base import FeatureLevels, Method
from freescale.walk import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver


@dataclass(frozen=True)
class RectifiedHR(Method):
    """Noise refresh at growing sizes, and energy rectification by guidance."""

    name: ClassVar[str] = "rectifiedhr"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    asks_sizes: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    levels: int | None = None  # None: 2 up to twice the training size, 3 beyond
    first: float = 0.8  # T_min: share of the steps before the first refresh; released for 2048x2048: 0.6
    step_power: float = 0.5  # M_T: of the share of steps by level
    guidance: float | None = None  # factor of the guidance scale at the last level; None: 6 with 2 levels, else 10
    guidance_power: float = 0.5  # M_omega: of the guidance by level
    filter: PictureFilter = "bicubic"  # as released; paper: bilinear
    posterior: Literal["sample", "mode"] = "mode"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels is {self.levels}, allowed: 2 or more")
        if not 0.0 < self.first < 1.0:
            raise ValueError(f"first is {self.first}, allowed: above 0, below 1")
        for name in ("step_power", "guidance_power"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: above 0")
        if self.guidance is not None and self.guidance < 0.0:
            raise ValueError(f"guidance is {self.guidance}, allowed: 0 or more")
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
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return sizes whose sides grow by equal steps from the training size to the target."""
        factor = growth_between(size, base_size)
        if factor <= 1:
            return (size,)
        count = self.levels or (2 if factor <= 2 else 3)
        shares = (Fraction(r, count - 1) for r in range(1, count - 1))
        return (base_size, *sizes_between(size, base_size, shares, cell), size)

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the level's own size, as released."""
        return sizes[level]

    def at_base(self) -> RectifiedHR:
        """Return the method with the share of the first steps only."""
        return RectifiedHR(first=self.first)

    def at_start(self) -> RectifiedHR:
        """Return the defaults: a level starts at the first noise level of its walk."""
        return RectifiedHR()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the level's part of the schedule."""
        if len(sizes) == 1:
            return schedule
        return span(schedule, *(self.refresh_step(schedule, at, len(sizes)) for at in (level, level + 1)))

    def refresh_step(self, schedule: Schedule, level: int, levels: int) -> int:
        """Return the step that a level begins with: T_r = (T_max - T_min) ((r - 1) / (N - 1))^M_T + T_min, T_0 = 0."""
        if level in (0, levels):
            return level and len(schedule)
        steps, first = len(schedule), self.first * len(schedule)
        found = int((steps - first) * ((level - 1) / (levels - 1)) ** self.step_power + first + 1e-9)
        return max(level, min(found, steps - levels + level))  # every level has a step

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, guided by the level's share of the largest factor."""
        return scaled_guidance(denoiser, self.guidance_at(moment))(latents, moment.step, moment.schedule)

    def guidance_at(self, moment: Moment) -> float:
        """Return the factor of the guidance scale: omega_r = (omega_max - 1) (r / (N - 1))^M_omega + 1."""
        index, count = moment.level.index, len(moment.level.sizes)
        if index == 0 or count < 2:
            return 1.0
        largest = (6.0 if count == 2 else 10.0) if self.guidance is None else self.guidance
        share: float = (index / (count - 1)) ** self.guidance_power
        return (largest - 1.0) * share + 1.0
