"""CineScale (arXiv:2508.15774) on transformers, in both editions: the successor of FreeScale by its authors.

`cinescale`, of 2025: a cascade in latents with theta times 20 or 25 on rows and columns (`positions`) and a
temperature. Published for Wan 2.1 with a LoRA, which is not here: sizes of 1, 1.5 and 2 times, steps 15 to 50 above
the first, shifts 7, 9 and 11. Its paper states scale fusion and dilation for UNets alone, and its code blends no
reference in.

`cinescale_2026`, the rewrite: no training and no other positions, but attention in tiles of queries over all keys,
with rectified positions (`rectified_attention`). Published for Wan 2.1 and 2.2: one jump, latents enlarged by
bilinear interpolation, the last 25 of 40 steps at shift 12, tiles of 18 x 32 tokens and 9 x 16 that stay, of a
training grid of 45 x 80; up to 3 times the size is advised. Ours: the same shares of other training grids, and what
becomes of text in joint attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

from freescale.backbones.base import RotatesAnywhere
from freescale.backbones.changes import Temperature, reaching, rectifying
from freescale.cascade import CELL, cascade_sizes, jump_sizes
from freescale.enlarge import Interpolation
from freescale.methods.base import Method
from freescale.positions import PositionRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from freescale.cascade import Size
    from freescale.flow_levels import ShiftRules
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class _Cascade(Method):
    """What both editions share: restarts from enlarged latents."""

    steady: ClassVar[bool] = True
    backbones = frozenset({"flow"})

    restart: float = 0.3  # share of the schedule that a level above the first leaves out
    upsample: Literal["rgb", "latent"] = "latent"
    interpolation: Interpolation | None = "bilinear"  # of latents; None: bicubic
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.restart < 1.0:
            raise ValueError(f"restart is {self.restart}, allowed: 0 to below 1")
        self.check_choices(
            {
                "upsample": ("rgb", "latent"),
                "interpolation": (*get_args(Interpolation), None),
                "posterior": ("sample", "mode"),
            }
        )

    def at_base(self) -> Self:
        """Return the defaults: level 0 is plain sampling."""
        return type(self)()

    def at_start(self) -> Self:
        """Return the method with the restart only."""
        return type(self)(restart=self.restart)

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at `restart` of the schedule."""
        return schedule.step_at(self.restart)


@dataclass(frozen=True)
class CineScale(_Cascade):
    """The edition of 2025: slower positions and a temperature, in steps of 1.5 times the size."""

    name: ClassVar[str] = "cinescale"

    growth: float = 1.5  # of a level over the one below, at most
    positions: PositionRule = "cinescale"
    temperature: Temperature = "cinescale"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        super().__post_init__()
        if self.growth <= 1.0:
            raise ValueError(f"growth is {self.growth}, allowed: above 1")
        self.check_choices({"positions": get_args(PositionRule), "temperature": get_args(Temperature)})

    @property
    def shift_rule(self) -> ShiftRules:
        """The published shifts."""
        return 7.0, 9.0, 11.0

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its growths below the target, and the target."""
        return cascade_sizes(size, base_size, growth=self.growth, cell=cell)

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield positions and temperature above level 0."""
        level = moment.level
        if not level.is_base and level.factor > 1.0:
            yield from reaching(self.positions, self.temperature, level)


@dataclass(frozen=True)
class CineScale2026(_Cascade):
    """The edition of 2026: tiles of queries over all keys, whose positions are rectified."""

    name: ClassVar[str] = "cinescale_2026"

    restart: float = 0.375  # the last 25 of 40 steps are taken
    tile: float = 0.4  # side of a tile as a share of the training grid's
    near: float = 0.2  # distance within which positions stay, as a share of it
    whole: bool = True  # positions are rounded, as released

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        super().__post_init__()
        if not 0.0 < self.tile <= 1.0 or not 0.0 <= self.near <= 1.0:
            raise ValueError(f"tile {self.tile}, near {self.near}, allowed: tile above 0, to 1, near 0 to 1")

    @property
    def needs(self) -> Mapping[type, str]:
        """Rotary positions, since tiles are turned apart from each other."""
        return {RotatesAnywhere: ""}

    @property
    def shift_rule(self) -> ShiftRules:
        """The published shift."""
        return 12.0

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size and the target."""
        return jump_sizes(size, base_size)

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield attention in tiles above level 0."""
        level = moment.level
        if not level.is_base and level.factor > 1.0:
            from freescale.rectified_attention import Rectified  # here, since a plan needs none of it

            yield rectifying(Rectified(self.tile, self.near, self.whole), level)
