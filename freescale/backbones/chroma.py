"""Chroma (lodestones/Chroma): FLUX.1's tokens, positions and attention, without a pooled row and without guidance.

It was trained with padding tokens of T5 masked out, all but the first. Text has no positions of its own, and nothing
sees a masked token: without these tokens the result is the same. So they are cut off where a prompt is encoded, and no
mask is left. The stock pipeline of diffusers 0.42 hands its mask on as numbers, which attention adds to its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.flux import Flux, image_ids
from freescale.backbones.joint import PATCH, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.backbones.base import Rows


@dataclass(frozen=True, eq=False)
class Chroma(Flux):
    """A `ChromaTransformer2DModel`."""

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches. Raises `ValueError` for a guidance."""
        if rows.guidance is not None:
            raise ValueError(f"guidance is {rows.guidance}, allowed: None with this network")
        batch, device = given.shape[0], given.device
        dtype = dtype_of(self.network)
        output: Tensor = self.network(
            hidden_states=pack(given.to(dtype)),
            timestep=torch.tensor(timestep, dtype=torch.float32, device=device).to(dtype).expand(batch) / 1000,
            encoder_hidden_states=to_rows(rows.embeds, batch),
            txt_ids=torch.zeros(rows.embeds.shape[1], 3, device=device),
            img_ids=image_ids((given.shape[2] // PATCH, given.shape[3] // PATCH), device),
            return_dict=False,
        )[0]
        return unpack(output, (given.shape[2], given.shape[3]))
