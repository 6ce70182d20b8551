"""Scale fusion in one row of tokens the slow way: queries, keys and values are given, and the angle of every token.

float64. Written from what is asked: windows at the trained origin, whose tokens attend to each other and to all that is
no image; the other rows are global; low frequencies from the windows, high ones from the grid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from tests.oracles.scale_fusion import blur

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Grid = tuple[int, int]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rows (tokens, heads, size), with neighbours turned by the angles (tokens, size / 2)."""
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (queries, heads * size) of turned rows."""
    logits = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[2])
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1), value).flatten(1)


def fused(
    rows: tuple[Tensor, Tensor, Tensor],
    angles: Tensor,
    image: list[int],
    grid: Grid,
    window: Grid,
    origins: list[Grid],
    at: Callable[[int, int], Tensor],
    kernel: int,
) -> Tensor:
    """The fused attention (tokens, C) before any output projection.

    `image` are the numbers of the image tokens, row by row; `at` is the angle of one at a row and a column.
    """
    query, key, value = rows
    whole = attended(turned(query, angles), turned(key, angles), value)
    others = [number for number in range(len(query)) if number not in image]
    total, seen = torch.zeros(*grid, whole.shape[1], dtype=whole.dtype), torch.zeros(*grid, 1, dtype=whole.dtype)
    for top, left in origins:
        places = [(r, c) for r in range(window[0]) for c in range(window[1])]
        own = [image[(top + r) * grid[1] + left + c] for r, c in places]
        here = torch.stack([at(r, c) for r, c in places])
        keys = torch.cat([turned(key[others], angles[others]), turned(key[own], here)])
        made = attended(turned(query[own], here), keys, torch.cat([value[others], value[own]]))
        total[top : top + window[0], left : left + window[1]] += made.view(*window, -1)
        seen[top : top + window[0], left : left + window[1]] += 1
    plain, output = whole[image].view(*grid, -1), whole.clone()
    output[image] = (plain + blur(total / seen - plain, kernel, 1.0, "renormalize", channels=False)).flatten(0, 1)
    return output
