"""FreeScale's ablations by name (arXiv:2412.09626, tables of the ablation study), and other variants worth a row.

Where a method is named, "freescale/no-fusion" is one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.methods import METHODS
from freescale.methods.freescale import FreeScale

if TYPE_CHECKING:
    from freescale.methods.base import Method

ABLATIONS: dict[str, FreeScale] = {
    # of the paper
    "freescale/no-fusion": FreeScale(fusion=False),  # "w/o Scale Fusion"
    "freescale/dilated-up": FreeScale(dilated_layers="all_up"),  # "Dilated Up-Blocks"; which ones is not said: all
    "freescale/dilated-up0": FreeScale(dilated_layers="up0"),  # or the deepest
    "freescale/latent-upsampling": FreeScale(upsample="latent"),  # "Latent Space Upsampling"
    "freescale/rgb-upsampling": FreeScale(upsample="rgb"),  # "RGB Upsampling", for video; the default for images
    # ours
    "freescale/fast": FreeScale(fast=True),
    "freescale/no-dilation": FreeScale(dilate=False),
    "freescale/no-anchor": FreeScale(lerp=False),
    "freescale/no-freeu": FreeScale(freeu=None),
    "freescale/no-channel-blur": FreeScale(channel_blur=False),
    "freescale/no-jitter": FreeScale(jitter=False),
    "freescale/paper-kernel": FreeScale(blur_kernel="paper"),
    "freescale/local-only": FreeScale(bands="local"),
    "freescale/global-only": FreeScale(bands="global"),
    "freescale/swapped-bands": FreeScale(bands="swapped"),
}


def named(name: str) -> Method:
    """Return a method at its defaults, or an ablation, by name."""
    if name in METHODS:
        return METHODS[name]()
    if name in ABLATIONS:
        return ABLATIONS[name]
    raise ValueError(f"method is {name!r}, allowed: {', '.join([*METHODS, *ABLATIONS])}")
