"""The families of transformers that can be rendered with, one file each. To add one: its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.imported import Imported

if TYPE_CHECKING:
    from stages.models.flow.base import FlowFamily

FLOW_FAMILIES: Imported[FlowFamily] = Imported(
    "stages.models.flow",
    {
        "FluxPipeline": "flux.FLUX",
        "ChromaPipeline": "chroma.CHROMA",
        "Flux2KleinPipeline": "flux2.KLEIN",
        "Flux2Pipeline": "flux2.DEV",
        "StableDiffusion3Pipeline": "sd3.SD3",
        "QwenImagePipeline": "qwen.QWEN_IMAGE",
        "ZImagePipeline": "zimage.Z_IMAGE",
        "WanPipeline": "wan.WAN",
    },
)
"""By the class of pipeline that a folder names."""
