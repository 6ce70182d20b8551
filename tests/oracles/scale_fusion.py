"""Scale fusion the slow way: every window and the whole grid through the complete layer, then the formula.

float64, loops, lists. Written from the paper (FreeScale, "Scale Fusion") and from what its release does (zero
tokens beyond the border, a Gaussian that also runs along the channels); nothing is shared with the package.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int]


def layer(attn: Any, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
    """The whole self-attention layer for tokens (N, C), attending to `keys` (M, C), output projection
    included."""
    keys = tokens if keys is None else keys
    query, key, value = attn.to_q(tokens), attn.to_k(keys), attn.to_v(keys)
    width = query.shape[-1] // attn.heads
    output = torch.zeros_like(query)
    for head in range(attn.heads):
        part = slice(head * width, (head + 1) * width)
        k = key[:, part] if attn.norm_k is None else attn.norm_k(key[:, part])
        for row in range(len(tokens)):
            q = query[row, part] if attn.norm_q is None else attn.norm_q(query[row, part])
            weights = torch.exp((k @ q) / math.sqrt(width))
            output[row, part] = (weights / weights.sum()) @ value[:, part]
    return attn.to_out[0](output)


def local(attn: Any, x: Tensor, window: Grid, origins: list[Grid], border: str) -> Tensor:
    """L (h, w, C): the mean over all windows that cover a token of that window's own attention."""
    h, w, channels = x.shape
    total, count = torch.zeros_like(x), torch.zeros(h, w, 1, dtype=x.dtype)
    for top, left in origins:
        places = list(itertools.product(range(top, top + window[0]), range(left, left + window[1])))
        inside = [(r, c) for r, c in places if 0 <= r < h and 0 <= c < w]
        rows = torch.stack([x[r, c] for r, c in inside])
        outside = torch.zeros(len(places) - len(inside) if border == "sink" else 0, channels, dtype=x.dtype)
        for (r, c), value in zip(inside, layer(attn, rows, torch.cat([rows, outside])), strict=True):
            total[r, c] += value
            count[r, c] += 1
    return total / count


def whole(attn: Any, x: Tensor, phases: Grid = (1, 1)) -> Tensor:
    """G (h, w, C): attention over the grid, or over each of its interleaved phases."""
    output = torch.zeros_like(x)
    for p, q in itertools.product(range(phases[0]), range(phases[1])):
        phase = x[p :: phases[0], q :: phases[1]]
        if phase.numel():
            output[p :: phases[0], q :: phases[1]] = layer(attn, phase.flatten(0, 1)).view(phase.shape)
    return output


def blur(x: Tensor, kernel: int, sigma: float, border: str, channels: bool) -> Tensor:
    """The Gaussian of `kernel` taps over (h, w), or over (h, w, C) as the release's 3-D convolution does."""
    reach = range(-(kernel // 2), kernel // 2 + 1)
    one = {u: math.exp(-(u**2) / (2 * sigma**2)) for u in reach}
    one = {u: weight / sum(one.values()) for u, weight in one.items()}
    offsets = list(itertools.product(reach, reach, reach if channels else [0]))
    values, output = x.tolist(), torch.zeros_like(x)
    for place in itertools.product(*(range(size) for size in x.shape)):
        total, used = 0.0, 0.0
        for offset in offsets:
            weight = one[offset[0]] * one[offset[1]] * (one[offset[2]] if channels else 1.0)
            r, c, k = (
                i + u if border != "reflect" else mirror(i + u, n)
                for i, u, n in zip(place, offset, x.shape, strict=True)
            )
            if 0 <= r < x.shape[0] and 0 <= c < x.shape[1] and 0 <= k < x.shape[2]:
                total, used = total + weight * values[r][c][k], used + weight
        output[place] = total / used if border == "renormalize" else total
    return output


def mirror(index: int, size: int) -> int:
    """Walk outwards from the border and back in, without repeating the edge."""
    while size > 1 and not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index if size > 1 else 0


def fuse(
    attn: Any,
    x: Tensor,
    window: Grid,
    origins: list[Grid],
    *,
    kernel: int,
    sigma: float = 1.0,
    border: str = "clamp",
    blur_border: str = "zero",
    channels: bool = True,
    phases: Grid = (1, 1),
    bands: str = "fused",
) -> Tensor:
    """The fused layer for one picture x (h, w, C)."""
    low, high = local(attn, x, window, origins, border), whole(attn, x, phases)
    if bands in ("local", "global"):
        return low if bands == "local" else high
    if bands == "swapped":
        low, high = high, low
    low, high_too = (blur(x, kernel, sigma, blur_border, channels) for x in (low, high))
    return low + high - high_too
