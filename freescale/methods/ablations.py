"""FreeScale's ablations by name (arXiv:2412.09626, tables of the ablation study), and other variants.

A name such as "freescale/no-fusion" is taken wherever a method is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freescale.methods import METHODS
from freescale.methods.freescale import FreeScale

if TYPE_CHECKING:
    from freescale.methods.base import Method

CHANGES: dict[str, dict[str, Any]] = {
    # of the paper
    "freescale/no-fusion": {"fusion": False},  # "w/o Scale Fusion"
    "freescale/dilated-up": {"dilated_layers": "all_up"},  # "Dilated Up-Blocks"; which ones is not said: all
    "freescale/dilated-up0": {"dilated_layers": "up0"},  # or the deepest
    "freescale/latent-upsampling": {"upsample": "latent"},  # "Latent Space Upsampling"
    "freescale/rgb-upsampling": {"upsample": "rgb"},  # "RGB Upsampling", for video; the default for images
    # ours
    "freescale/fast": {"fast": True},
    "freescale/no-dilation": {"dilate": False},
    "freescale/no-anchor": {"lerp": False},
    "freescale/no-freeu": {"freeu": None},
    "freescale/no-channel-blur": {"channel_blur": False},
    "freescale/no-jitter": {"jitter": False},
    "freescale/paper-kernel": {"blur_kernel": "paper"},
    "freescale/local-only": {"bands": "local"},
    "freescale/global-only": {"bands": "global"},
    "freescale/swapped-bands": {"bands": "swapped"},
}
"""The fields that each sets. One that is set to its default counts too: a model's card may have another default."""

ABLATIONS: dict[str, FreeScale] = {name: FreeScale(**changes) for name, changes in CHANGES.items()}


def named(name: str) -> Method:
    """Return a method at its defaults, or an ablation, by name. Raises `ValueError` for an unknown name."""
    if name in METHODS:
        return METHODS[name]()
    if name in ABLATIONS:
        return ABLATIONS[name]
    raise ValueError(f"method is {name!r}, allowed: {', '.join([*METHODS, *ABLATIONS])}")
