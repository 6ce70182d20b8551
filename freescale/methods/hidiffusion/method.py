"""HiDiffusion (arXiv:2311.17528): a resolution-aware U-Net for the early steps and windowed attention throughout.

One level, sampled at the target size. Objects are repeated because the deep blocks see larger grids than they were
trained for, so in the early steps, when the layout forms, these grids are reduced (`rau_net`); self-attention at
the largest grids is cut into shifted windows (`shifted_windows`), for speed.

The release has two classes of size, told apart by the shorter side over the training side, and two layouts of UNet.
Its factors are 2. Beyond four times the training size it has none, and the rule here is ours: the reduction that
lasts longer brings the deep grids to twice their training size, the other one halves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from freescale.forward_process import generator
from freescale.methods.base import Method
from freescale.methods.hidiffusion.rau_net import Layout, check_blocks, layout_of, rau_net
from freescale.methods.hidiffusion.shifted_windows import shifted_windows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import nn

    from freescale.cascade import Level
    from freescale.moment import Moment
    from freescale.solvers import Solver
    from freescale.unet_patches import Patch

Span = tuple[float, float]  # from, to: shares of the steps

RELEASED: dict[tuple[Layout, bool], tuple[Span, Span]] = {  # (layout, is large): when RAD and when pooling are on
    ("sdxl", False): ((0.0, 0.16), (0.16, 0.4)),  # 8 and 20 of 50 steps; a side below 4096
    ("sdxl", True): ((0.0, 0.3), (0.0, 0.7)),
    ("sd", False): ((0.0, 0.4), (0.0, 0.0)),  # a side below 2048
    ("sd", True): ((0.0, 0.7), (0.0, 0.3)),
}


@dataclass(frozen=True)
class HiDiffusion(Method):
    """RAU-Net by size class and step, shifted windows at every step."""

    name: ClassVar[str] = "hidiffusion"
    any_unet: ClassVar[bool] = False
    video: ClassVar[bool] = False

    rad: Span | None = None  # None: as released for the UNet and the size; (0, 0): never
    pool: Span | None = None  # SDXL-Turbo as released: rad (0, 0), pool (0, 0.5)
    windows: bool = True
    shifts: int = 4  # a window is moved by 0 to shifts - 1 of its `shifts` parts
    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2; off in the release

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("rad", "pool"):
            span = getattr(self, name)
            if span is not None and not 0.0 <= span[0] <= span[1] <= 1.0:
                raise ValueError(f"{name} is {span}, allowed: two rising shares between 0 and 1")
        if self.shifts < 1:
            raise ValueError(f"shifts is {self.shifts}, allowed: 1 or more")

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM with eta = 1, as released."""
        return "ddim", 1.0

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield the reductions and the windows where the scale rounds to 2 or more; nothing below."""
        if round(moment.level.factor) < 2:
            return

        def reduced(unet: nn.Module) -> AbstractContextManager[None]:
            """Reduce the deep grids by the factors for the layout of this UNet."""
            check_blocks(unet)
            return rau_net(*self.reductions(moment, layout_of(unet)))(unet)

        yield reduced
        if self.windows:
            yield shifted_windows(lambda name: self.quarter(moment, name), self.shifts)

    def reductions(self, moment: Moment, layout: Layout) -> tuple[int, int]:
        """Return the factors of RAD and of pooling at this step; 1 where they are off."""
        level, schedule, large = moment.level, moment.schedule, is_large(moment.level)
        rad, pool = RELEASED[layout, large]
        longer = max(2, round(level.factor / 2)) if large else 2
        factors = (2, longer) if layout == "sdxl" else (longer, 2)
        spans = (rad if self.rad is None else self.rad, pool if self.pool is None else self.pool)
        is_on = [schedule.step_at(span[0]) <= moment.step < schedule.step_at(span[1]) for span in spans]
        return (factors[0] if is_on[0] else 1), (factors[1] if is_on[1] else 1)

    def quarter(self, moment: Moment, name: str) -> int:
        """Return how many parts of a window the layer `name` is moved by."""
        stream = generator(moment.seed, "msw_shift", moment.level.index, moment.step, name)
        return int(torch.randint(self.shifts, (), generator=stream))


def is_large(level: Level) -> bool:
    """Whether both sides are four training sides or more (4096 for SDXL), that of a square of the base's area.

    The base's sides are rounded to whole cells, hence the slack of a hundredth.
    """
    return min(level.size) >= 0.99 * 4 * math.sqrt(level.base_size[0] * level.base_size[1])
