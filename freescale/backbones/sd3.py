"""Stable Diffusion 3 and 3.5: a transformer over image and text tokens with a table of positions, a flow model.

A token is 2 x 2 latent cells. Positions are sines and cosines that are added to the tokens, cropped at the middle of a
table; they are not rotations. Of the rules of positions `pi` has a meaning: the crop of the training size is
interpolated to the grid. The network takes its time as 1000 sigma in float32, whatever its own dtype.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.joint import Windowed, check_patches, processed, tempered, tokens_of
from freescale.joint_attention import JointAttention
from freescale.unet_patches import Child, replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from freescale.backbones.base import BackboneKind, Rows
    from freescale.cascade import Size
    from freescale.joint_attention import JointAsked
    from freescale.positions import PositionRule
    from freescale.unet_patches import Patch

RULES = ("none", "pi")


@dataclass(frozen=True, eq=False)
class SD3(Windowed):
    """An `SD3Transformer2DModel`."""

    kind: ClassVar[BackboneKind] = "flow"

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches; `rows.added` has `pooled_projections`.

        Raises `ValueError` for latents of other sides or beyond the table of positions, and for a guidance.
        """
        batch = given.shape[0]
        if rows.guidance is not None:
            raise ValueError(f"guidance is {rows.guidance}, allowed: None with this network")
        check_patches(given)
        output: Tensor = self.network(
            hidden_states=given.to(dtype_of(self.network)),
            timestep=torch.tensor(timestep, dtype=torch.float32, device=given.device).expand(batch),
            pooled_projections=to_rows(rows.added["pooled_projections"], batch),
            encoder_hidden_states=to_rows(rows.embeds, batch),
            return_dict=False,
        )[0]
        return output

    def attentions(self) -> list[tuple[str, Any]]:
        """Return (name, module) of every joint attention, and of those over image tokens alone (3.5 medium)."""
        return [(name, module) for name, module in self.network.named_modules() if name.endswith((".attn", ".attn2"))]

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Put `JointAttention` in place of every processor; positions are in the tokens, so windows have the grid's."""
        grid = tokens_of(latent_hw)
        return processed(self.attentions(), lambda name, inner: JointAttention(inner, name, grid, None, asked))

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Interpolate the table of the training size to the grid. Raises `ValueError` for a rule other than `pi`."""
        if rule not in RULES:
            raise ValueError(f"positions is {rule!r}, allowed: {', '.join(RULES)} with a table of positions")
        grid, own = tokens_of(latent_hw), tokens_of(trained)

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Put the network's own module back afterwards."""
            from freescale.substitutes import Placed  # a class of torch's

            embed: Any = network.pos_embed
            kept = min(grid[0], own[0]), min(grid[1], own[1])
            cells = kept[0] * embed.patch_size, kept[1] * embed.patch_size
            table = embed.cropped_pos_embed(*cells).unflatten(1, kept).permute(0, 3, 1, 2)
            exact = table.to(torch.promote_types(table.dtype, torch.float32))
            larger = F.interpolate(exact, size=grid, mode="bicubic", align_corners=False).to(table.dtype)
            placed = Placed(embed, larger.flatten(2).transpose(1, 2))
            with replaced([Child(network, "pos_embed", embed, placed)]):
                yield

        return patch

    def tempered(self, factor: float) -> Patch:
        """Multiply the queries of image and text, after their norm where there is one."""
        return tempered(self.attentions(), factor)
