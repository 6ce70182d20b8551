"""Scale fusion over the tokens of a video the slow way: every window token by token through all frames, in float64.

Written from what is asked: windows of the trained size on the grid of a frame, each through all frames; low
frequencies of a frame from the windows, high ones from attention over the whole video.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from tests.oracles.joint_fusion import attended
from tests.oracles.scale_fusion import blur

Grid = tuple[int, int]


def fused(attn: Any, tokens: Tensor, frames: int, grid: Grid, window: Grid, origins: list[Grid], **how: Any) -> Tensor:
    """The fused attention (F * h * w, C) before the output projection."""
    kernel, border = how.pop("kernel"), how.pop("border")
    made = attn.norm_q(attn.to_q(tokens)), attn.norm_k(attn.to_k(tokens)), attn.to_v(tokens)
    heads = [each.view(len(tokens), attn.heads, -1) for each in made]

    def number(frame: int, row: int, column: int) -> int:
        return (frame * grid[0] + row) * grid[1] + column

    def places(size: Grid, corner: Grid) -> list[Any]:
        axes = range(frames), range(size[0]), range(size[1])
        return [(number(f, corner[0] + r, corner[1] + c), (f, r, c)) for f, r, c in itertools.product(*axes)]

    everything = places(grid, (0, 0))
    plain = attended(heads, everything, everything, **how).view(frames, *grid, -1)
    total, seen = torch.zeros_like(plain), torch.zeros(frames, *grid, 1, dtype=plain.dtype)
    for top, left in origins:
        inside = places(window, (top, left))
        part = slice(None), slice(top, top + window[0]), slice(left, left + window[1])
        total[part] += attended(heads, inside, inside, **how).view(frames, *window, -1)
        seen[part] += 1
    difference = total / seen - plain
    blurred = torch.stack([blur(each, kernel, 1.0, border, channels=False) for each in difference])
    return (plain + blurred).flatten(0, 2)
