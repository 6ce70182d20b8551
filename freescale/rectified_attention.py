"""Attention in tiles of queries over all keys, with rectified positions (CineScale 2026, "AR-RoPE", arXiv:2508.15774).

Queries [A, B] of a tile keep their positions on an axis whose last one is E. Keys near the tile keep theirs too. Those
farther away are compressed linearly, so that no key is farther from any query of the tile than M, the last position of
the training size:

    t- = min(near, A, M - (B - A)),  K- = A - t-,  L = max(0, B - M)
    t+ = min(near, E - B, M - (B - A)),  K+ = B + t+,  R = min(E, A + M)
    p < K- becomes L + p / K- (K- - L),  p > K+ becomes K+ + (p - K+) (R - K+) / (E - K+)

The released code rounds to whole positions. Every query is in one tile, so nothing is averaged, and the cost is that of
global attention and one rotation of all keys a tile. Where M is at least E, positions are as they were.

Published for video models whose text is outside of self-attention; there a tile goes through all frames. In joint
attention text has a place as well, beside a grid that begins at 0 on both axes; this part is ours. For a tile of image
queries that grid begins at L, where the compressed keys begin, and text queries are a tile of their own beside a grid
at 0. So there, too, no offset is larger than in training. Where text is beside a grid is the network's: at its origin
(FLUX, Z-Image), or from half of its larger side on along the diagonal (Qwen-Image).

Tokens are (B, n + h * w, heads, head_dim), text first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freescale.heads import Heads, output_of, sdpa
from freescale.joint_attention import as_before, joint_heads, rotated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from freescale.joint_attention import Rotary
    from freescale.unet_patches import Processor
    from freescale.windows import Grid

    RotaryAt = Callable[["Places"], Rotary]

Span = tuple[int, int]
"""First and last position."""

IMAGE = -1.0
"""In place of the number in the text, for an image token."""


class Places(NamedTuple):
    """Where tokens are, each (tokens,) in float64; text is at the row and the column of the grid that it is beside."""

    rows: Tensor
    columns: Tensor
    words: Tensor  # numbers in the text; `IMAGE` for those of the image
    frames: Tensor


@dataclass(frozen=True)
class Rectified:
    """Sizes of tiles and of what stays, as shares of the training grid on each axis."""

    tile: float = 0.4  # above 0, to 1
    near: float = 0.2  # 0 to 1
    whole: bool = True  # positions are rounded


def rectified_positions(span: Span, last: int, trained_last: int, near: int, *, whole: bool = True) -> Tensor:
    """Return the positions (last + 1) of all keys for queries of a span, float64.

    `last` is E, `trained_last` is M. The span may not be longer than M.
    """
    first, end = span
    budget = trained_last - (end - first)
    left, right = first - min(near, first, budget), end + min(near, last - end, budget)
    lowest, highest = max(0, end - trained_last), min(last, first + trained_last)
    position = torch.arange(last + 1, dtype=torch.float64)
    before = lowest + position / max(left, 1) * (left - lowest)
    after = right + (position - right) * ((highest - right) / max(last - right, 1))
    moved = torch.where(position < left, before, torch.where(position > right, after, position))
    return moved.round() if whole else moved


def spans(length: int, tile: int) -> list[Span]:
    """Return the spans of an axis, each of `tile` positions but the last."""
    return [(first, min(first + tile, length) - 1) for first in range(0, length, tile)]


@dataclass(frozen=True, eq=False)
class RectifiedAttention:
    """The attention processor: `inner` is the one it stands in for at sizes that the network was trained at."""

    inner: Processor
    name: str  # of the attention
    tiles: Tiles
    rotary_at: RotaryAt

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Any:
        """Return the attention of image and text tokens, or of both in one row, as `inner` does."""
        if self.tiles.is_trained:
            return as_before(
                self.inner,
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                encoder_hidden_states_mask=encoder_hidden_states_mask,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )
        if attention_mask is not None or encoder_hidden_states_mask is not None:
            raise ValueError(f"{self.name} has a mask, allowed: joint attention as FLUX.1 has it")
        heads = joint_heads(attn, hidden_states, encoder_hidden_states)
        text = heads.query.shape[1] - self.tiles.grid[0] * self.tiles.grid[1]
        attended = self.tiles.attended(heads, text, self.rotary_at)
        if encoder_hidden_states is None:
            return attended
        return output_of(attn, attended[:, text:]), attn.to_add_out(attended[:, :text])


@dataclass(frozen=True)
class Tiles:
    """The tiles of a grid of tokens, for a network that was trained on `trained` ones."""

    grid: Grid
    trained: Grid
    asked: Rectified

    @property
    def is_trained(self) -> bool:
        """Whether the grid is no larger than the trained one."""
        return all(side <= trained for side, trained in zip(self.grid, self.trained, strict=True))

    def attended(self, heads: Heads, text: int, rotary_at: RotaryAt, frames: int = 1) -> Tensor:
        """Return the attention (B, n + F * h * w, C) of all tokens, the first `text` of which are text."""
        height, width = self.grid
        number = torch.arange(frames * height * width).view(frames, *self.grid)
        rows, columns = list(self._axis(0)), list(self._axis(1))
        output, tile = torch.empty_like(heads.query).flatten(2), partial(self._tile, heads, text, rotary_at, frames)
        if text:
            output[:, :text] = tile(torch.arange(text), self._keys(0, (0, 0)), self._keys(1, (0, 0)), (0.0, 0.0))
        for (tall, of_rows), (wide, of_columns) in itertools.product(rows, columns):
            inside = text + number[:, tall[0] : tall[1] + 1, wide[0] : wide[1] + 1].flatten()
            output[:, inside] = tile(inside, of_rows, of_columns, (float(of_rows[0]), float(of_columns[0])))
        return output

    def _axis(self, axis: int) -> Iterator[tuple[Span, Tensor]]:
        """Yield the spans of an axis, and the positions of all keys for each."""
        tile = max(1, round(self.asked.tile * self.trained[axis]))
        return ((span, self._keys(axis, span)) for span in spans(self.grid[axis], tile))

    def _keys(self, axis: int, span: Span) -> Tensor:
        near = round(self.asked.near * self.trained[axis])
        return rectified_positions(span, self.grid[axis] - 1, self.trained[axis] - 1, near, whole=self.asked.whole)

    def _tile(
        self,
        heads: Heads,
        text: int,
        rotary_at: RotaryAt,
        frames: int,
        queries: Tensor,
        rows: Tensor,
        columns: Tensor,
        begin: tuple[float, float],
    ) -> Tensor:
        """Return the attention (B, queries, C) of some tokens to all, whose rows and columns are given.

        Text is at `begin`, where the positions of keys begin; the queries' own are whole.
        """
        device, words = heads.query.device, torch.arange(text, dtype=torch.float64)
        frame, row, column = (
            x.flatten() for x in torch.meshgrid(torch.arange(frames, dtype=torch.float64), rows, columns, indexing="ij")
        )
        of_image = torch.full_like(row, IMAGE)
        keys = (
            *(_after(first, text, axis) for first, axis in zip(begin, (row, column), strict=True)),
            *(torch.cat(pair) for pair in ((words, of_image), (torch.zeros_like(words), frame))),
        )
        image, is_text, width = (queries - text).clamp(min=0), queries < text, self.grid[1]
        size = self.grid[0] * width
        own = image % size // width, image % width, torch.where(is_text, queries, IMAGE), image // size
        query, key = (
            rotated(x, rotary_at(Places(*(each.double().to(device) for each in places))))
            for x, places in ((heads.query[:, queries.to(device)], own), (heads.key, keys))
        )
        return sdpa(Heads(query, key, heads.value))


def _after(begin: float, count: int, positions: Tensor) -> Tensor:
    """Return the positions of text, all at one place, and those of the image."""
    return torch.cat([torch.full((count,), begin, dtype=positions.dtype), positions])
