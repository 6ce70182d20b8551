"""Restrained dilated convolution (FreeScale, section of that name): which convolutions are dilated, and how far.

Dilated kernels keep the receptive field of the training size, so objects are not repeated. Where they act late they
blur texture, hence the restraint: they are in the down and middle blocks only, and not in the last steps (`methods`).
"""

from __future__ import annotations

import difflib
import itertools
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from freescale.phase_convs import dilate_on_phases
from freescale.unet_patches import dilate_convs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from freescale.cascade import Level
    from freescale.unet_patches import Patch

DilatedLayers = Literal["down_mid", "down_mid_wide", "all_up", "up0"]
DilationRule = Literal["scale", "axis", "width"]

# All that runs at a quarter of the latent size or below, and the convolution that enters it: 9 convolutions
# in SDXL, 14 in the four-level UNets of Stable Diffusion 1.5 and 2.1 and of VideoCrafter2 (down_blocks.3 has
# no downsampler).
_DOWN_MID = (
    r"down_blocks\.1\.downsamplers\.0\.conv"
    r"|down_blocks\.[2-9]\.(resnets\.\d+\.conv[12]|downsamplers\.0\.conv)"
    r"|mid_block\.resnets\.\d+\.conv[12]"
)
# The ablation "dilated up-blocks". Which ones the paper does not say: all (20 in SDXL) or the deepest (7).
_UP = r"|up_blocks\.{}\.(resnets\.\d+\.conv[12]|upsamplers\.0\.conv)"

# ScaleCrafter's list without its up-blocks: 18 in the four-level UNets.
_WIDE = r"|down_blocks\.1\.resnets\.\d+\.conv[12]"

_CONV = re.compile(r"((down|up)_blocks\.\d+|mid_block)\.(resnets\.\d+\.conv[12]|(down|up)samplers\.0\.conv)")

LAYERS: dict[DilatedLayers, re.Pattern[str]] = {
    "down_mid": re.compile(_DOWN_MID),
    "down_mid_wide": re.compile(_DOWN_MID + _WIDE),
    "all_up": re.compile(_DOWN_MID + _UP.format(r"\d")),
    "up0": re.compile(_DOWN_MID + _UP.format("0")),
}


def dilated_layers(unet: nn.Module, layers: DilatedLayers = "down_mid") -> tuple[str, ...]:
    """Return the names of the convolutions of `unet` to dilate, in the order of its modules."""
    return tuple(name for name, _ in unet.named_modules() if LAYERS[layers].fullmatch(name))


def convs_under(unet: nn.Module, block: str) -> tuple[str, ...]:
    """Return the names of the 3x3 convolutions at or below `block`: `mid_block`, `up_blocks.0.resnets`, …

    Raises `ValueError` where there is none.
    """
    convs = [name for name, _ in unet.named_modules() if _CONV.fullmatch(name)]
    if found := tuple(name for name in convs if name == block or name.startswith(f"{block}.")):
        return found
    known = {whole for name in convs for whole in itertools.accumulate(name.split("."), "{}.{}".format)}
    near = difflib.get_close_matches(block, sorted(known), 1)
    raise ValueError(
        f"layer {block!r} is unknown, allowed: a 3x3 convolution of this UNet or a block that has some"
        + (f"; the nearest is {near[0]!r}" if near else "")
    )


def dilation_factor(level: Level, rule: DilationRule = "scale") -> tuple[int, int]:
    """Return the dilation (height, width) at a level, at least 1.

    `scale` rounds the larger scale for both axes, `axis` rounds each axis, `width` takes the whole part of
    the width's scale for both, as released (so a tall picture gets too little).
    """
    if rule == "axis":
        return max(1, round(level.scale[0])), max(1, round(level.scale[1]))
    factor = max(1, int(level.scale[1]) if rule == "width" else round(level.factor))
    return factor, factor


def restrained_dilation(layers: DilatedLayers, factor: tuple[int, int], on_phases: bool = False) -> Patch:
    """Dilate the chosen layers of a UNet by `factor` (height, width).

    With `on_phases` they are computed as dense convolutions (`phase_convs`), which is equal to rounding.
    """
    dilate = dilate_on_phases if on_phases else dilate_convs

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Dilate the layers that this UNet has."""
        with dilate(dilated_layers(unet, layers), factor)(unet):
            yield

    return patch
