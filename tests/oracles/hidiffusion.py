"""HiDiffusion's operators the slow way (arXiv:2311.17528): strided dilated convolution, cells averaged one by one,
attention within each shifted window over a padded grid, padding left out of the softmax. float64 and loops.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.scale_fusion import layer


def rad(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (C, h, w) under a 3 x 3 kernel with stride 4, padding 2 and dilation 2."""
    _, h, w = x.shape
    rows, columns = range(0, h, 4), range(0, w, 4)
    output = torch.zeros(len(weight), len(rows), len(columns), dtype=x.dtype)
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        output[:, i, j] = bias
        for u, v in itertools.product(range(3), range(3)):
            y, z = r + 2 * (u - 1), c + 2 * (v - 1)
            if 0 <= y < h and 0 <= z < w:
                output[:, i, j] += weight[:, :, u, v] @ x[:, y, z]
    return output


def pool(x: Tensor) -> Tensor:
    """x (C, h, w) averaged over 2 x 2 cells, over those that exist where a side is odd."""
    rows, columns = math.ceil(x.shape[1] / 2), math.ceil(x.shape[2] / 2)
    means = [[x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(columns)] for i in range(rows)]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def shifted(attn: Any, x: Tensor, shift: tuple[int, int]) -> Tensor:
    """The layer for a picture x (h, w, C) within 2 x 2 windows of the grid rolled by `shift`."""
    h, w, _ = x.shape
    wh, ww = math.ceil(h / 2), math.ceil(w / 2)
    output = torch.full_like(x, math.nan)
    for a, b in itertools.product(range(2), range(2)):
        places = []
        for r, c in itertools.product(range(a * wh, a * wh + wh), range(b * ww, b * ww + ww)):
            place = (r + shift[0]) % (2 * wh), (c + shift[1]) % (2 * ww)
            if place[0] < h and place[1] < w:
                places.append(place)
        if not places:  # the second half of a side of one
            continue
        for place, value in zip(places, layer(attn, torch.stack([x[p] for p in places])), strict=True):
            output[place] = value
    return output
