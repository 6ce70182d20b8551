"""Neighbourhood patch attention (ScaleDiff, arXiv:2510.25818): self-attention within the span of the training size.

The grid is cut into blocks of half a window, where a window is the grid that the layer saw at the training size. Every
token is a query once, and the queries of a block attend to the one window around it. So the cost is tokens times
window, without the overlap that averaged windows pay for (`windows`), and no average hides a seam between blocks:
`jitter` moves all blocks by less than half a window, anew for each layer and step.

Only self-attention is cut. Convolutions and text see the whole canvas once. In the joint attention of transformers,
text is a key of every block, and as a query it attends to all tokens (`joint_patches`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freescale.forward_process import generator
from freescale.grid_attention import attend_on_grids
from freescale.heads import Heads, attend, output_of, project, sets_at_once
from freescale.portions import each
from freescale.windows import Grid, window_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from freescale.moment import Moment
    from freescale.unet_patches import Patch


class Block(NamedTuple):
    """A span of queries along one axis, [first, one past the last), and the first key of its window."""

    first: int
    stop: int
    key: int


def blocks(length: int, window: int, offset: int = 0) -> tuple[Block, ...]:
    """Return the blocks of an axis, half a window each, the window of each centred on it and moved inside the axis.

    `offset`, 0 to below window // 2, is the length of a first, shorter block; with 0 there is none.
    """
    stride = max(1, window // 2)
    cuts = sorted({0, *range(offset, length, stride), length})
    last = length - window
    return tuple(
        Block(first, stop, min(max((first + stop - window) // 2, 0), last)) for first, stop in itertools.pairwise(cuts)
    )


@dataclass(frozen=True, eq=False)
class PatchAttention:
    """What one level and step ask of every self-attention."""

    scale: tuple[float, float]  # grid over training grid, (height, width)
    jitter: Callable[[str], torch.Generator] | None = None  # the stream of a layer
    window_rows: int | None = None  # most rows of one call (batch rows x blocks); None: what the device takes well

    def axes(self, name: str, grid: Grid) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """Return the blocks of the layer `name` along both axes."""
        window, offsets = window_size(grid, self.scale), (0, 0)
        if self.jitter is not None:
            drawn = torch.rand(2, generator=self.jitter(name), dtype=torch.float64)
            offsets = tuple((drawn * (torch.tensor(window) // 2)).floor().long().tolist())
        rows, columns = (
            blocks(*axis) if axis[1] < axis[0] else (Block(0, axis[0], 0),)
            for axis in zip(grid, window, offsets, strict=True)
        )
        return rows, columns

    def output(self, attn: Any, hidden_states: Tensor, name: str, grid: Grid) -> Tensor | None:
        """Return the output (B, h * w, C) of a layer; None where the window is the whole grid."""
        window = window_size(grid, self.scale)
        if window == grid:
            return None
        rows, columns = self.axes(name, grid)
        heads = project(attn, hidden_states)
        return output_of(attn, attend_blocks(heads, grid, window, rows, columns, self.window_rows))


def patches_at(moment: Moment, *, jitter: bool) -> PatchAttention:
    """Return what a level and step ask; `jitter` moves the blocks above twice the training size."""
    level = moment.level

    def stream(layer: str) -> torch.Generator:
        """Return the stream of one layer."""
        return generator(moment.seed, "jitter", level.index, moment.step, layer)

    moves = jitter and level.factor > 2.0
    return PatchAttention(level.scale, stream if moves else None, moment.compute.window_rows)


def patch_attention(asked: PatchAttention) -> Patch:
    """Cut every spatial self-attention of a UNet into blocks of queries, each with its window of keys."""
    return attend_on_grids(asked)


def attend_blocks(
    heads: Heads,
    grid: Grid,
    window: Grid,
    rows: tuple[Block, ...],
    columns: tuple[Block, ...],
    window_rows: int | None = None,
) -> Tensor:
    """Return the attention (B, h * w, C) of every token to the window of its block, blocks of a shape together."""
    output = torch.empty_like(heads.query).flatten(2)
    at_once = sets_at_once(heads, window[0] * window[1], window_rows)
    for index, around in sets_of(grid, window, rows, columns, at_once):
        output[:, index.to(output.device)] = attend(heads, index, keys=around)
    return output


def sets_of(
    grid: Grid, window: Grid, rows: tuple[Block, ...], columns: tuple[Block, ...], at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token numbers of queries (sets, T) and of their keys (sets, K), sets of a shape together."""
    for shape in _shapes(rows, columns):
        tall, wide = (_of_side(axis, n) for axis, n in zip((rows, columns), shape, strict=True))
        queries = _tokens([b.first for b in tall], [b.first for b in wide], shape, grid)
        keys = _tokens([b.key for b in tall], [b.key for b in wide], window, grid)
        pairs = list(zip(torch.split(queries, at_once), torch.split(keys, at_once), strict=True))
        yield from each(pairs, lambda pair: len(pair[0]))


def _of_side(axis: tuple[Block, ...], side: int) -> list[Block]:
    return [block for block in axis if block.stop - block.first == side]


def _shapes(rows: tuple[Block, ...], columns: tuple[Block, ...]) -> Iterator[Grid]:
    """Yield the shapes of the blocks, the largest first."""
    sides = (sorted({block.stop - block.first for block in axis}, reverse=True) for axis in (rows, columns))
    yield from itertools.product(*sides)


def _tokens(tops: list[int], lefts: list[int], shape: Grid, grid: Grid) -> Tensor:
    """Return the token numbers (sets, rows * columns) of rectangles of a shape, all tops with all lefts."""
    y = torch.tensor(tops)[:, None] + torch.arange(shape[0])
    x = torch.tensor(lefts)[:, None] + torch.arange(shape[1])
    return (y[:, None, :, None] * grid[1] + x[None, :, None, :]).flatten(2).flatten(0, 1)
