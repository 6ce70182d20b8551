"""AP-LDM (arXiv:2410.06055): level 0 attends to itself ("attentive guidance"), then few short restarts at larger sizes.

After some early steps of level 0 every latent cell moves a little towards the mean of the cells that resemble it:
z + a (softmax(Z Z^T / sqrt(C)) Z - z), with Z the cells as tokens of C channels. Further levels are plain: enlarged in
pixels and sampled from a late step on. Their areas grow by equal steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F

from freescale.attention import prefer_backends
from freescale.cascade import CELL, growth_between, sizes_between
from freescale.methods.base import FeatureLevels, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.moment import Moment
    from freescale.schedule import Schedule


@dataclass(frozen=True)
class APLDM(Method):
    """Attentive guidance at level 0, and plain short restarts."""

    name: ClassVar[str] = "ap_ldm"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    asks_growth: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    attention: float = 0.005  # strength of attentive guidance; 0: none; default of the release: 0.001
    attention_steps: tuple[float, float] = (0.06, 0.36)  # shares of level 0: after steps 3 to 18 of 50; released: all
    unit_variance: bool = True  # of the latents as tokens, as in the paper; false: as they are for an Euler solver
    levels: int = 1  # sizes above the training size
    restart: float = 0.8  # 10 of 50 steps are taken
    posterior: Literal["sample", "mode"] = "mode"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.attention <= 1.0:
            raise ValueError(f"attention is {self.attention}, allowed: 0 to 1")
        if not 0.0 <= self.attention_steps[0] <= self.attention_steps[1] <= 1.0:
            raise ValueError(f"attention_steps is {self.attention_steps}, allowed: two shares of 0 to 1 that ascend")
        if self.levels < 1:
            raise ValueError(f"levels is {self.levels}, allowed: 1 or more")
        if not 0.0 <= self.restart < 1.0:
            raise ValueError(f"restart is {self.restart}, allowed: 0 to below 1")
        self.check_choices({"posterior": ("sample", "mode")})

    @property
    def clamps(self) -> bool:
        """Always; as released it is done after the enlargement."""
        return True

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return sizes whose areas grow by equal steps from the training size to the target."""
        factor = growth_between(size, base_size)
        if factor <= 1:
            return (size,)
        ratio = size[0] * size[1] / (base_size[0] * base_size[1])
        grown = (math.sqrt(1.0 + (ratio - 1.0) * level / self.levels) for level in range(1, self.levels))
        shares = ((side - 1.0) / (math.sqrt(ratio) - 1.0) for side in grown)
        return tuple(dict.fromkeys((base_size, *sizes_between(size, base_size, shares, cell), size)))

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the level's own size, as released."""
        return sizes[level]

    def at_base(self) -> APLDM:
        """Return the method with the fields of attentive guidance only."""
        return APLDM(self.attention, self.attention_steps, self.unit_variance)

    def at_start(self) -> APLDM:
        """Return the method with the restart only."""
        return APLDM(restart=self.restart)

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at `restart` of the schedule."""
        return schedule.step_at(self.restart)

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents with attentive guidance after the step before, where level 0 has levels above it."""
        level, step, schedule = moment.level, moment.step, moment.schedule
        if not (level.is_base and level.grows and self.attention):
            return latents
        first, last = (schedule.step_at(share) for share in self.attention_steps)
        if not max(first, 1) <= step <= last or step % schedule.calls:
            return latents
        deviation = math.sqrt(1.0 + moment.sigma**2) if self.unit_variance else 1.0
        return latents + self.attention * (deviation * attended(latents / deviation) - latents)


def attended(latents: Tensor) -> Tensor:
    """Return softmax(Z Z^T / sqrt(C)) Z of latents (B, C, h, w), in their shape: cells are tokens of C channels."""
    tokens = latents.flatten(2).mT[:, None]
    with prefer_backends(latents.device, latents.dtype):
        found = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return found[:, 0].mT.reshape(latents.shape)
