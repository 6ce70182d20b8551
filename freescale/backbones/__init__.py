"""The networks that can be denoised with, one file a family. To add one: its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.backbones.base import Backbone, BackboneKind, Rows, dtype_of, to_rows
from freescale.backbones.chroma import Chroma
from freescale.backbones.flux import Flux
from freescale.backbones.flux2 import Flux2
from freescale.backbones.unet import UNet
from freescale.backbones.zimage import ZImage

if TYPE_CHECKING:
    from torch import nn

BACKBONES: dict[str, type[Backbone]] = {
    "UNet2DConditionModel": UNet,
    "UNet3DConditionModel": UNet,
    "UNetMotionModel": UNet,
    "VideoCrafterUNet": UNet,
    "FluxTransformer2DModel": Flux,
    "ChromaTransformer2DModel": Chroma,
    "Flux2Transformer2DModel": Flux2,
    "ZImageTransformer2DModel": ZImage,
}
"""By the name of a network's class, or of one that it inherits."""

__all__ = ["BACKBONES", "Backbone", "BackboneKind", "Rows", "backbone_of", "dtype_of", "to_rows"]


def backbone_of(network: nn.Module) -> Backbone:
    """Return the view of a network that the denoiser calls. Raises `ValueError` for a class that is not known."""
    for kind in network.__class__.__mro__:
        if kind.__name__ in BACKBONES:
            return BACKBONES[kind.__name__](network)
    raise ValueError(f"the network is a {type(network).__name__}, allowed: {', '.join(BACKBONES)}")
