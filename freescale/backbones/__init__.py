"""The networks that can be denoised with, one file a family. To add one: its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.backbones.base import Backbone, BackboneKind, Rescales, Rows, dtype_of, to_rows
from freescale.imported import Imported

if TYPE_CHECKING:
    from torch import nn

BACKBONES: Imported[type[Backbone]] = Imported(
    "freescale.backbones",
    {
        "UNet2DConditionModel": "unet.UNet",
        "UNet3DConditionModel": "unet.UNet",
        "UNetMotionModel": "unet.UNet",
        "VideoCrafterUNet": "unet.UNet",
        "FluxTransformer2DModel": "flux.Flux",
        "ChromaTransformer2DModel": "chroma.Chroma",
        "Flux2Transformer2DModel": "flux2.Flux2",
        "SD3Transformer2DModel": "sd3.SD3",
        "QwenImageTransformer2DModel": "qwen.QwenImage",
        "ZImageTransformer2DModel": "zimage.ZImage",
        "WanTransformer3DModel": "wan.Wan",
        "WanTransformerPair": "wan.Wan",
    },
)
"""By the name of a network's class, or of one that it inherits."""

__all__ = ["BACKBONES", "Backbone", "BackboneKind", "Rescales", "Rows", "backbone_of", "dtype_of", "to_rows"]


def backbone_of(network: nn.Module) -> Backbone:
    """Return the view of a network that the denoiser calls. Raises `ValueError` for a class that is not known."""
    for kind in network.__class__.__mro__:
        if kind.__name__ in BACKBONES:
            return BACKBONES[kind.__name__](network)
    raise ValueError(f"the network is a {type(network).__name__}, allowed: {', '.join(BACKBONES)}")
