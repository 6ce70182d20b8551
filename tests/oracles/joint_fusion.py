"""Scale fusion in joint attention the slow way: every window token by token with its text, then the formula.

float64, loops. Written from what is asked: windows of the trained size at the trained origin, whose tokens attend to
each other and to all text; text rows are global; low frequencies from the windows, high ones from the grid.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.scale_fusion import blur

Grid = tuple[int, int]


def turned(x: Tensor, place: Grid | None, dims: tuple[int, int, int], theta: float) -> Tensor:
    """One head's row with its pairs turned by (0, row, column), or by three numbers; text (None) is at (0, 0, 0)."""
    output, first = x.clone(), 0
    places = (0, 0, 0) if place is None else place if len(place) == 3 else (0, *place)
    for position, width in zip(places, dims, strict=True):
        for j in range(width // 2):
            angle = position * theta ** (-2 * j / width)
            a, b = x[first + 2 * j], x[first + 2 * j + 1]
            output[first + 2 * j] = a * math.cos(angle) - b * math.sin(angle)
            output[first + 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
        first += width
    return output


def rows(attn: Any, image: Tensor, text: Tensor | None) -> list[Tensor]:
    """Queries, keys and values (tokens, heads, size), text first."""
    found = []
    for of, own, norm in (("q", "add_q_proj", "q"), ("k", "add_k_proj", "k"), ("v", "add_v_proj", None)):
        made = getattr(attn, f"to_{of}")(image).view(len(image), attn.heads, -1)
        made = made if norm is None else getattr(attn, f"norm_{norm}")(made)
        if text is not None:
            before = getattr(attn, own)(text).view(len(text), attn.heads, -1)
            before = before if norm is None else getattr(attn, f"norm_added_{norm}")(before)
            made = torch.cat([before, made])
        found.append(made)
    return found


def attended(
    heads: list[Tensor], queries: list[tuple[int, Grid | None]], keys: list[tuple[int, Grid | None]], **rotary: Any
) -> Tensor:
    """Attention (queries, heads * size) of token numbers at places to others."""
    query, key, value = heads
    output = torch.zeros(len(queries), *query.shape[1:], dtype=query.dtype)
    for head in range(query.shape[1]):
        against = torch.stack([turned(key[number, head], place, **rotary) for number, place in keys])
        values = torch.stack([value[number, head] for number, _ in keys])
        for row, (number, place) in enumerate(queries):
            logits = against @ turned(query[number, head], place, **rotary) / math.sqrt(query.shape[2])
            output[row, head] = logits.softmax(0) @ values
    return output.flatten(1)


def fused(
    attn: Any, image: Tensor, text: Tensor | None, count: int, grid: Grid, window: Grid, origins: list[Grid], **how: Any
) -> Tensor:
    """The fused attention (n + h * w, C) before any output projection; `count` tokens are text."""
    kernel, border = how.pop("kernel"), how.pop("border")
    heads = rows(attn, image, text)
    words: list[tuple[int, Grid | None]] = [(number, None) for number in range(count)]
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    everything = words + [(count + r * grid[1] + c, (r, c)) for r, c in places]
    whole = attended(heads, everything, everything, **how)
    total, seen = torch.zeros(*grid, whole.shape[1], dtype=whole.dtype), torch.zeros(*grid, 1, dtype=whole.dtype)
    for top, left in origins:
        own: list[tuple[int, Grid | None]] = [
            (count + (top + r) * grid[1] + left + c, (r, c))
            for r, c in itertools.product(range(window[0]), range(window[1]))
        ]
        made = attended(heads, own, words + own, **how).view(*window, -1)
        total[top : top + window[0], left : left + window[1]] += made
        seen[top : top + window[0], left : left + window[1]] += 1
    plain = whole[count:].view(*grid, -1)
    output = plain + blur(total / seen - plain, kernel, 1.0, border, channels=False)
    return torch.cat([whole[:count], output.flatten(0, 1)])
