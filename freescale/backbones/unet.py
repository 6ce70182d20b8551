"""The UNets of Stable Diffusion and of videos. Images are (B, C, h, w), videos (B, C, F, h, w)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import to_rows
from freescale.patch_attention import patch_attention
from freescale.scale_fusion import scale_fusion
from freescale.unet_patches import has_motion_modules

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.backbones.base import BackboneKind, Rows
    from freescale.cascade import Size
    from freescale.patch_attention import PatchAttention
    from freescale.positions import PositionRule
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch


@dataclass(frozen=True, eq=False)
class UNet:
    """A UNet of diffusers, or one of that form."""

    kind: ClassVar[BackboneKind] = "unet"

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the UNet's output for scaled latents.

        `rows.added` has `text_embeds` and `time_ids` for SDXL, nothing for Stable Diffusion 1.5 and most video UNets.
        """
        batch, embeds = given.shape[0], to_rows(rows.embeds, given.shape[0])
        if given.ndim == 5 and has_motion_modules(self.network):
            embeds = embeds.repeat_interleave(given.shape[2], 0)  # such a UNet takes a row of embeddings for each frame
        options: dict[str, Any] = {"encoder_hidden_states": embeds, "return_dict": False}
        if rows.fps is not None:
            options["timestep_cond"] = rows.fps
        if rows.added:
            options["added_cond_kwargs"] = {name: to_rows(value, batch) for name, value in rows.added.items()}
        time = torch.tensor(timestep, dtype=torch.float32, device=given.device)
        dtype = next(self.network.parameters()).dtype
        output: Tensor = self.network(given.to(dtype), time, **options)[0]
        return output

    def fused(self, fusion: Fusion, latent_hw: Size) -> Patch:
        """Return `scale_fusion`; every layer's grid is recorded while the UNet runs."""
        return scale_fusion(fusion)

    def in_patches(self, asked: PatchAttention, latent_hw: Size) -> Patch:
        """Return `patch_attention`."""
        return patch_attention(asked)

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Raise `ValueError`: a UNet has no rotary positions."""
        raise ValueError(f"positions is {rule!r}, allowed: 'none' with a UNet")

    def tempered(self, factor: float) -> Patch:
        """Raise `ValueError`: the temperature is for joint attention."""
        raise ValueError("temperature is not 'off', allowed: 'off' with a UNet")
