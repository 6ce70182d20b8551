"""Which convolutions ScaleCrafter re-dilates, how far and how long (arXiv:2310.07702, supplement, and its release).

A size that was released gets what was released. For every other size there is a rule of ours, which gives the released
values at 2048 x 2048, 2560 x 2560 and 4096 x 4096 (SDXL) and 1024 x 1024 and 2048 x 2048 (Stable Diffusion 1.5).
Sizes count in training sizes, so all of this serves a model of any training size with one of the two topologies.

For videos nothing was released. A UNet with layers over frames was trained on a rectangle, so its sizes count in that,
and one with the blocks of Stable Diffusion 2.1 (VideoCrafter2, ModelScope) gets that model's setting: at twice the size
factor 2 in 39 convolutions for 20 of 50 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from freescale.unet_patches import is_video_unet

if TYPE_CHECKING:
    from freescale.cascade import Level

Layers = tuple[tuple[str, float], ...]
"""(a block or a convolution, its factor)."""

SMALLEST_FACTOR = 1.25
"""Below it nothing is re-dilated."""
GRADED_FACTOR = 2.75
"""Above it outer blocks get less than inner ones, factors fall step by step, and guidance is damped."""


@dataclass(frozen=True)
class Setting:
    """What a render does; stops are shares of the schedule."""

    layers: Layers = ()
    dilate_stop: float = 0.6
    progressive: bool = False  # factors fall from step to step, down to 2
    ndcfg_layers: Layers = ()  # of the weaker net in noise-damped guidance
    ndcfg_stop: float = 0.0


@dataclass(frozen=True)
class Topology:
    """The blocks of one kind of UNet."""

    flat: tuple[str, ...]  # one factor for all
    graded: Layers  # block, its share of the factor
    weak: Layers  # block, its share of the factor in the weaker net
    dispersed: tuple[str, ...]

    def flat_setting(self, factor: float, stop: float) -> Setting:
        """Return one factor for all blocks; no noise-damped guidance."""
        return Setting(tuple((block, factor) for block in self.flat), stop)

    def graded_setting(self, factor: float, stop: float = 0.7) -> Setting:
        """Return factors by block, at least 2, that fall step by step, with noise-damped guidance."""
        return Setting(_shares(self.graded, factor), stop, True, _shares(self.weak, factor), stop)


def _shares(layers: Layers, factor: float) -> Layers:
    return tuple((block, max(2.0, share * factor)) for block, share in layers)


SDXL = Topology(
    flat=("mid_block", "up_blocks.0"),  # 11 convolutions
    graded=(  # 28
        ("down_blocks.2", 1.0),
        ("mid_block", 1.0),
        ("up_blocks.0", 1.0),
        ("up_blocks.1", 0.75),
        ("up_blocks.2", 0.5),
    ),
    weak=(("mid_block", 0.5), ("up_blocks.0", 0.5)),  # 11
    dispersed=("down_blocks.2", "up_blocks.0", "mid_block"),  # 15
)
_SD_WEAK: Layers = (  # 27
    ("down_blocks.2", 0.75),
    ("down_blocks.3", 1.0),
    ("mid_block", 1.0),
    ("up_blocks.0", 1.0),
    ("up_blocks.1", 0.75),
)
SD = Topology(
    flat=("down_blocks.1", "up_blocks.2", *(block for block, _ in _SD_WEAK)),  # 39
    graded=(("down_blocks.1", 0.5), ("up_blocks.2", 0.5), *_SD_WEAK),  # 39
    weak=_SD_WEAK,
    dispersed=("down_blocks.2.downsamplers", "down_blocks.3", "up_blocks.0", "up_blocks.1", "mid_block"),  # 23
)
_SD21_WEAK: Layers = (  # 34
    ("down_blocks.2.resnets", 3.0),
    ("down_blocks.2.downsamplers", 4.0),
    ("down_blocks.3", 4.0),
    ("mid_block", 4.0),
    ("up_blocks.0", 4.0),
    ("up_blocks.1", 4.0),
    ("up_blocks.2", 3.0),
)
_SDXL_WIDE = SDXL.graded_setting(4.0)

# Released settings that the rule does not give, by (short side, long side) in training sizes.
RELEASED: dict[str, dict[tuple[float, float], Setting]] = {
    "sdxl": {(2.0, 4.0): replace(_SDXL_WIDE, layers=(("down_blocks.2", 3.0), *_SDXL_WIDE.layers[1:]))},
    "sd15": {
        (2.5, 2.5): SD.flat_setting(2.5, 0.7),
        (2.0, 4.0): SD.graded_setting(4.0),
    },
    "sd21": {
        (2.0, 2.0): SD.flat_setting(2.0, 0.4),
        (2.0, 4.0): replace(SD.graded_setting(4.0, 0.74), ndcfg_layers=(), ndcfg_stop=0.0),
        (4.0, 4.0): Setting((*_SD21_WEAK, ("up_blocks.3.resnets", 2.0)), 0.74, True, _SD21_WEAK, 0.74),  # 40
    },
}


def topology_of(unet: Any) -> Topology:
    """Return the blocks of a UNet with SDXL's three levels or Stable Diffusion's four; others raise `ValueError`."""
    levels = len(unet.down_blocks)
    if levels not in (3, 4):
        raise ValueError(f"the UNet has {levels} levels, allowed: 3 (SDXL) or 4 (Stable Diffusion 1.5, 2.1)")
    return SDXL if levels == 3 else SD


def setting_for(unet: Any, level: Level) -> Setting:
    """Return the released setting of a size, or what the rule gives."""
    topology = topology_of(unet)
    is_sd21 = unet.config.cross_attention_dim == 1024 or hasattr(unet, "transformer_in")
    kind = "sdxl" if topology is SDXL else "sd21" if is_sd21 else "sd15"
    sides_here = (min(level.scale), max(level.scale)) if is_video_unet(unet) else _sides(level)
    for sides, setting in RELEASED[kind].items():
        if all(abs(side - given) <= 0.02 * given for side, given in zip(sides_here, sides, strict=True)):
            return setting
    factor = level.factor
    if factor < SMALLEST_FACTOR:
        return Setting()
    return topology.flat_setting(factor, 0.6) if factor <= GRADED_FACTOR else topology.graded_setting(factor)


def _sides(level: Level) -> tuple[float, float]:
    """Return (short, long) in sides of the training square, whose area the base size has but for rounding."""
    training = math.sqrt(level.base_size[0] * level.base_size[1])
    return min(level.size) / training, max(level.size) / training
