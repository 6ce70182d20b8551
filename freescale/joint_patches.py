"""Neighbourhood patch attention (`patch_attention`) in joint attention: every image token attends to a window and text.

The queries of a block attend to the image tokens of the window around it and to all of the text, which is where it is
beside a picture of the training size (`joint_attention`). Text rows are those of global attention.

Tokens are (B, n + h * w, heads, head_dim), text first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from freescale.heads import Heads, sdpa, sets_at_once
from freescale.joint_attention import rotated
from freescale.patch_attention import sets_of
from freescale.windows import window_size

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.joint_attention import JointLayer, Rotary, Turns
    from freescale.patch_attention import Block, PatchAttention
    from freescale.windows import Grid


@dataclass(frozen=True, eq=False)
class JointPatches:
    """Patch attention as it is asked of every joint attention."""

    asked: PatchAttention

    def layer(self, name: str, grid: Grid) -> JointLayer | None:
        """Return the blocks of a layer; None where a window is the whole grid."""
        window = window_size(grid, self.asked.scale)
        if window == grid:
            return None
        return _PatchedLayer(grid, window, *self.asked.axes(name, grid), self.asked.window_rows)


@dataclass(frozen=True, eq=False)
class _PatchedLayer:
    grid: Grid
    window: Grid
    rows: tuple[Block, ...]
    columns: tuple[Block, ...]
    window_rows: int | None

    def attended(self, heads: Heads, text: int, turns: Turns) -> Tensor:
        """Return the attention of all tokens; every image token is a query once."""
        context, image = (Heads(*(x[:, part] for x in heads)) for part in (slice(text), slice(text, None)))
        image = image._replace(query=rotated(image.query, self._places(turns.own)))
        words = rotated(context.key, turns.words)
        output = torch.empty_like(heads.query).flatten(2)
        if text:
            output[:, :text] = of_text(heads, text, turns.everywhere)
        at_once = sets_at_once(image, self.window[0] * self.window[1] + text, self.window_rows)
        for index, around in sets_of(self.grid, self.window, self.rows, self.columns, at_once):
            queries, keys = index.to(output.device), around.to(output.device)
            query, key, value = (x[:, at].flatten(0, 1) for x, at in zip(image, (queries, keys, keys), strict=True))
            first, second = (x.repeat_interleave(len(queries), 0) for x in (words, context.value))
            given = torch.cat([first, rotated(key, turns.own)], dim=1), torch.cat([second, value], dim=1)
            output[:, text + queries] = sdpa(Heads(query, *given)).view(len(output), *queries.shape, -1)
        return output

    def _places(self, own: Rotary | None) -> Rotary | None:
        """Return the rotation of every image token as a query: that of its place in the window of its block."""
        if own is None:
            return None
        down, across = (
            torch.cat([torch.arange(block.first, block.stop) - block.key for block in axis])
            for axis in (self.rows, self.columns)
        )
        index = (down[:, None] * self.window[1] + across).flatten().to(own[0].device)
        return own[0][index], own[1][index]


def of_text(heads: Heads, text: int, everywhere: Rotary | None) -> Tensor:
    """Return the attention (B, n, C) of text tokens to all tokens."""
    turned = None if everywhere is None else (everywhere[0][:text], everywhere[1][:text])
    return sdpa(Heads(rotated(heads.query[:, :text], turned), rotated(heads.key, everywhere), heads.value))
