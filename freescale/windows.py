"""Overlapping, jittered windows over a token grid, the interleaved phases of fast mode, and rolled halves.

A window has the number of tokens that the layer saw at the training size, so the model attends over the span
it was trained for (FreeScale, "Scale Fusion": the local branch). Windows advance by half their size; the last
one touches the far border. At random each window is moved by up to an eighth of its size, so that no seam
stays in place.

Tokens are numbered row by row: token (y, x) of a grid (h, w) is y * w + x.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Grid = tuple[int, int]
Origin = tuple[int, int]

WindowBorder = Literal["clamp", "sink", "mask"]
"""A jittered window that would leave the grid is moved back inside (`clamp`), or stays where it is and its
outside tokens are zero rows that take part in the softmax (`sink`, as released) or are left out of it
(`mask`)."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Equal windows over a grid, in row-major order."""

    grid: Grid
    window: Grid
    places: Tensor  # (windows, 2) int64: (top, left) of each; may lie outside the grid unless clamped

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        """The (top, left) of each window."""
        return tuple((top, left) for top, left in self.places.tolist())

    @property
    def is_whole(self) -> bool:
        """Whether the one window is the grid itself."""
        return self.window == self.grid

    @property
    def leaves_grid(self) -> bool:
        """Whether some window has tokens outside the grid."""
        last = torch.tensor(self.grid) - torch.tensor(self.window)
        return bool(((self.places < 0) | (self.places > last)).any())

    def chunks(self, length: int | None) -> Iterator[Windows]:
        """Yield the same windows in order, at most `length` at a time (None: all at once)."""
        for places in torch.split(self.places, length or len(self)):
            yield Windows(self.grid, self.window, places)

    def tokens(self, device: torch.device | None = None) -> Tensor:
        """Return the token numbers (windows, wh * ww), int64; h * w for a token outside the grid.

        Only the origins travel to the device.
        """
        (h, w), (wh, ww) = self.grid, self.window
        top, left = self.places.to(device).unbind(1)
        y = (top[:, None] + torch.arange(wh, device=device))[:, :, None]
        x = (left[:, None] + torch.arange(ww, device=device))[:, None, :]
        if not self.leaves_grid:
            return (y * w + x).flatten(1)
        is_inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        return torch.where(is_inside, y * w + x, h * w).flatten(1)

    def overlap(self, number: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the part of a window that is inside the grid, as (rows, columns) of the grid and of the window."""
        top, left = self.places[number].tolist()
        rows = _overlap(top, self.window[0], self.grid[0])
        columns = _overlap(left, self.window[1], self.grid[1])
        return (rows[0], columns[0]), (rows[1], columns[1])

    def count(self, device: torch.device | None = None) -> Tensor:
        """Return how many windows cover each token, (h, w) float32; at least 1 everywhere."""
        (h, w), (wh, ww) = self.grid, self.window
        top, left = self.places.unbind(1)
        steps = torch.zeros(h + 1, w + 1, dtype=torch.int64)  # up where a window begins, down behind its end
        for y, row in ((top, 1), (top + wh, -1)):
            for x, column in ((left, 1), (left + ww, -1)):
                one = torch.tensor(row * column)
                steps.index_put_((y.clamp(0, h), x.clamp(0, w)), one, accumulate=True)
        return steps.cumsum(0).cumsum(1)[:h, :w].float().to(device)


def _overlap(first: int, span: int, length: int) -> tuple[slice, slice]:
    start, stop = max(first, 0), min(first + span, length)
    return slice(start, stop), slice(start - first, stop - first)


def window_size(grid: Grid, scale: tuple[float, float]) -> Grid:
    """Return the window for a grid at `scale`: its size at the training size, at least 1 token a side."""

    def side(length: int, scale: float) -> int:
        """Return one side of the window, in tokens."""
        return min(max(round(length / scale), 1), length)

    return side(grid[0], scale[0]), side(grid[1], scale[1])


def window_origins(length: int, window: int) -> tuple[int, ...]:
    """Return the first tokens of the windows along one axis, half a window apart, the last one touching the end."""
    stride = max(1, window // 2)
    return tuple(min(j * stride, length - window) for j in range(math.ceil((length - window) / stride) + 1))


def place_windows(
    grid: Grid,
    scale: tuple[float, float],
    *,
    jitter: torch.Generator | None = None,
    border: WindowBorder = "clamp",
) -> Windows:
    """Return the windows of one layer, moved at random if a `jitter` generator is given."""
    window = window_size(grid, scale)
    axes = [window_origins(length, span) for length, span in zip(grid, window, strict=True)]
    placed = torch.cartesian_prod(*(torch.tensor(axis) for axis in axes))
    if jitter is not None:
        placed = placed + _jitter(placed, grid, window, jitter)
    if border == "clamp":
        placed = placed.clamp(torch.tensor(0), torch.tensor(grid) - torch.tensor(window))
    return Windows(grid, window, placed)


def _jitter(origins: Tensor, grid: Grid, window: Grid, generator: torch.Generator) -> Tensor:
    """Return a random move (windows, 2) for each window and axis, uniform over -r..r tokens with r = window // 8.

    The first window of an axis only moves outwards (-r..0), so does the last (0..r); with the half-window
    stride this leaves no token uncovered. A window as long as its axis does not move.
    """
    last = torch.tensor(grid) - torch.tensor(window)
    radius = torch.where(last > 0, torch.tensor(window) // 8, 0)
    low = torch.where(origins == last, 0, -radius)
    high = torch.where(origins == 0, 0, radius)
    uniform = torch.rand(origins.shape, generator=generator, dtype=torch.float64)
    return low + (uniform * (high - low + 1)).floor().long()


def phase_tokens(grid: Grid, phases: Grid) -> list[Tensor]:
    """Return the token numbers of the phases y = p, x = q modulo (p_h, p_w), each (phases, tokens), int64.

    Phases of equal size share one tensor; where a side is not divisible they differ by one row or column,
    which makes up to four tensors. Every token appears exactly once.
    """
    rows, columns = (_phases(length, count) for length, count in zip(grid, phases, strict=True))
    return [
        (y[:, None, :, None] * grid[1] + x[None, :, None, :]).flatten(2).flatten(0, 1)
        for y, x in itertools.product(rows, columns)
    ]


def _phases(length: int, count: int) -> list[Tensor]:
    """Return the positions of the phases of one axis, (phases, positions), the longer ones first."""
    short, longer = divmod(length, count)
    parts = ((0, longer, short + 1), (longer, count if short else longer, short))
    return [
        torch.arange(first, stop)[:, None] + count * torch.arange(positions)
        for first, stop, positions in parts
        if first < stop
    ]


def rolled_halves(grid: Grid, shift: Grid) -> list[Tensor]:
    """Return the token numbers of four windows, half the grid along each axis, each (windows, tokens), int64.

    Windows start at `shift` and go on at the other border. An odd side counts one row more, which is no token, so
    windows may differ in size; those of equal size share one tensor. Every token appears exactly once.
    """

    def halves(length: int, shift: int) -> list[Tensor]:
        """Return the positions of both halves of one axis, those that are no tokens left out."""
        half = -(-length // 2)
        rolled = (torch.arange(2 * half) + shift) % (2 * half)
        return [part[part < length] for part in rolled.view(2, half)]

    groups: dict[Grid, list[Tensor]] = {}
    for y, x in itertools.product(halves(grid[0], shift[0]), halves(grid[1], shift[1])):
        groups.setdefault((len(y), len(x)), []).append((y[:, None] * grid[1] + x).flatten())
    return [torch.stack(group) for (rows, columns), group in groups.items() if rows and columns]
