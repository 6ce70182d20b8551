"""FLUX.2: a transformer over text and image tokens, a flow model.

As FLUX.1, a token is 2 x 2 latent cells. Positions are (0, row, column, 0), those of text (0, 0, 0, number). Blocks of
one row have attention and feed-forward in one product before and one after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.flux import Flux, image_ids
from freescale.backbones.joint import PATCH, pack, processed, tokens_of, unpack
from freescale.heads import Heads
from freescale.joint_attention import JointAttention, Turns
from freescale.rectified_attention import RectifiedAttention, Tiles

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.backbones.base import Rows
    from freescale.cascade import Size
    from freescale.joint_attention import JointAsked, Rotary
    from freescale.rectified_attention import Places, Rectified
    from freescale.unet_patches import Patch


@dataclass(frozen=True, eq=False)
class Flux2(Flux):
    """A `Flux2Transformer2DModel`."""

    axes: ClassVar[tuple[int | None, ...]] = (None, 0, 1, None)

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches.

        Raises `ValueError` for latents of other sides, and for a guidance that the network does not take or lacks.
        """
        batch, device = given.shape[0], given.device
        dtype = dtype_of(self.network)
        self.check_guidance(rows)
        time = torch.tensor(timestep, dtype=torch.float32, device=device).to(dtype).expand(batch) / 1000
        output: Tensor = self.network(
            hidden_states=pack(given.to(dtype)),
            timestep=time,
            guidance=None if rows.guidance is None else torch.full((batch,), rows.guidance, device=device),
            encoder_hidden_states=to_rows(rows.embeds, batch),
            txt_ids=text_ids(rows.embeds.shape[1], device),
            img_ids=grid_ids((given.shape[2] // PATCH, given.shape[3] // PATCH), device),
            return_dict=False,
        )[0]
        return unpack(output, (given.shape[2], given.shape[3]))

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Put `JointAttention` and `ParallelAttention` in place of every processor of joint attention."""
        grid, device = tokens_of(latent_hw), self.network.device

        def rotary_of(window: Size) -> Rotary:
            """Return the network's own table, whatever hooks a rule of positions has put on it."""
            table: Rotary = self.network.pos_embed.forward(grid_ids(window, device))
            return table

        def words_of(_: Size, count: int) -> Rotary:
            """Return that of the text, whatever the window."""
            table: Rotary = self.network.pos_embed.forward(text_ids(count, device))
            return table

        return processed(
            self.attentions(),
            lambda name, inner: (ParallelAttention if self._is_parallel(name) else JointAttention)(
                inner, name, grid, rotary_of, asked, words_of
            ),
        )

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Put `RectifiedAttention` and `ParallelTiles` in place of every processor of joint attention."""
        tiles = Tiles(tokens_of(latent_hw), tokens_of(trained), rectified)
        return processed(
            self.attentions(),
            lambda name, inner: (ParallelTiles if self._is_parallel(name) else RectifiedAttention)(
                inner, name, tiles, self.rotary_at
            ),
        )

    def rotary_at(self, places: Places) -> Rotary:
        """Return the network's own table for tokens at these rows and columns, text by its numbers."""
        rows, columns, words, _ = places
        ids = torch.stack((torch.zeros_like(rows), rows, columns, words.clamp(min=0)), dim=-1).float()
        table: Rotary = self.network.pos_embed.forward(ids)
        return table

    def _is_parallel(self, name: str) -> bool:
        return hasattr(self.network.get_submodule(name), "to_qkv_mlp_proj")


@dataclass(frozen=True, eq=False)
class ParallelAttention(JointAttention):
    """Joint attention in a block of one row, whose projections hold the feed-forward as well."""

    def __call__(  # type: ignore[override]  # a block of one row has no second row of tokens
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        """Return what the block adds to its tokens, text first, as `inner` does."""
        layer = self.asked.layer(self.name, self.grid)
        if layer is None:
            return self.inner(attn, hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None or image_rotary_emb is None or self.rotary_of is None or self.words_of is None:
            raise ValueError(f"{self.name} has a mask or no positions, allowed: attention as FLUX.2 has it")
        heads, forward = _parallel_heads(attn, hidden_states)
        count = hidden_states.shape[1] - self.grid[0] * self.grid[1]
        turns = Turns(image_rotary_emb, self.rotary_of(layer.window), self.words_of(layer.window, count))
        attended = layer.attended(heads, count, turns)
        return attn.to_out(torch.cat([attended, attn.mlp_act_fn(forward)], dim=-1))


@dataclass(frozen=True, eq=False)
class ParallelTiles(RectifiedAttention):
    """Attention in tiles in a block of one row, whose projections hold the feed-forward as well."""

    def __call__(  # type: ignore[override]  # a block of one row has no second row of tokens
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        """Return what the block adds to its tokens, text first, as `inner` does."""
        if self.tiles.is_trained:
            return self.inner(attn, hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None:
            raise ValueError(f"{self.name} has a mask, allowed: attention as FLUX.2 has it")
        heads, forward = _parallel_heads(attn, hidden_states)
        text = hidden_states.shape[1] - self.tiles.grid[0] * self.tiles.grid[1]
        attended = self.tiles.attended(heads, text, self.rotary_at)
        return attn.to_out(torch.cat([attended, attn.mlp_act_fn(forward)], dim=-1))


def _parallel_heads(attn: Any, hidden_states: Tensor) -> tuple[Heads, Tensor]:
    """Return the heads of all tokens, not rotated, and what the feed-forward acts on."""
    attention, forward = attn.to_qkv_mlp_proj(hidden_states).tensor_split([3 * attn.inner_dim], dim=-1)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in attention.chunk(3, dim=-1))
    return Heads(attn.norm_q(query), attn.norm_k(key), value), forward


def grid_ids(grid: Size, device: torch.device) -> Tensor:
    """Return the positions (h * w, 4) of the tokens of a grid: (0, row, column, 0)."""
    return torch.nn.functional.pad(image_ids(grid, device), (0, 1))


def text_ids(count: int, device: torch.device) -> Tensor:
    """Return the positions (count, 4) of text tokens: (0, 0, 0, number)."""
    return torch.nn.functional.pad(torch.arange(count, dtype=torch.float32, device=device)[:, None], (3, 0))
