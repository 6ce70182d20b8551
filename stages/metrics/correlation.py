"""Correlations of all pairs of cells, and what is looked up in them around a flow (RAFT, arXiv 2003.12039, 3.2).

Their number is the square of the cells': 10240² at 640x1024, which with the coarser levels is 560 MB. Up to `HELD` of
them are kept for all look-ups (1024x1024 pixels: 1.4 GB); of larger frames each look-up makes them anew, a part of
the cells at a time, so that memory stays near 0.4 GB and the numbers are the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, RADIUS = 4, 4
HELD = 2**28  # correlations that are kept
PART = 2**26  # that are made at a time where they are not


class Correlation:
    """Features (C, h, w) of two frames, compared."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        """`first` asks, `second` is looked up in."""
        self.size = first.shape[-2:]
        self.second = second.flatten(1)
        queries = first.flatten(1).T / math.sqrt(len(first))  # of the scalar product, section 3.2
        cells = len(queries)
        self.rows = cells if cells**2 <= HELD else max(1, PART // cells)
        self.queries = torch.split(queries, self.rows)
        self.held = self.pyramid(queries) if self.rows == cells else None

    def pyramid(self, queries: Tensor) -> list[Tensor]:
        """For `queries` (n, C): (n, 1, h, w) and its means over 2x2, 4x4 and 8x8 cells, whole ones alone."""
        levels = [(queries @ self.second).view(-1, 1, *self.size)]
        while len(levels) < LEVELS:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels

    def __call__(self, flow: Tensor) -> Tensor:
        """Return (4 * 81, h, w): for every cell the 9x9 values around where `flow` (2, h, w) leads, level by level."""
        rows, columns = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in self.size), indexing="ij")
        points = (torch.stack((columns, rows)) + flow).flatten(1).T
        parts = zip(self.queries, torch.split(points, self.rows), strict=True)
        found = torch.cat([look_up(self.held or self.pyramid(queries), where) for queries, where in parts])
        return found.T.reshape(-1, *self.size)


def look_up(levels: list[Tensor], points: Tensor) -> Tensor:
    """Return (n, 4 * 81) values around `points` (n, 2), x before y in cells, between cells bilinear and outside 0.

    Of the 9x9 offsets the first to vary is y: offset number 9 i + j is (x, y) = (i - 4, j - 4), as the weights have it.
    """
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=points.device, dtype=points.dtype)
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1)
    found = []
    for level, values in enumerate(levels):
        where = points[:, None, None] / 2**level + window
        size = torch.tensor(values.shape[:-3:-1], device=points.device, dtype=points.dtype)
        grid = (2 * where + 1) / size - 1  # grid_sample's own coordinates, which know of no single cell with others
        found.append(F.grid_sample(values, grid, align_corners=False).flatten(1))
    return torch.cat(found, dim=1)
