"""Re-dilation and dispersion by the definition: loops over output points and kernel taps, float64."""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1) -> Tensor:
    """x (C, h, w) -> (C', ceil(h / stride), ceil(w / stride)), zeros beyond the border, taps `dilation` apart."""
    (_, h, w), (out, channels, taps, _) = x.shape, weight.shape
    reach, output = taps // 2, torch.zeros(out, math.ceil(h / stride), math.ceil(w / stride), dtype=torch.float64)
    for r, c in itertools.product(range(output.shape[1]), range(output.shape[2])):
        for i, j in itertools.product(range(taps), range(taps)):
            y, z = r * stride + (i - reach) * dilation, c * stride + (j - reach) * dilation
            if 0 <= y < h and 0 <= z < w:
                for k in range(channels):
                    output[:, r, c] += weight[:, k, i, j] * x[k, y, z]
    return output if bias is None else output + bias[:, None, None]


def resize(x: Tensor, h: int, w: int) -> Tensor:
    """Bilinear to (h, w): the centre of pixel r lies at r + 1/2, and the border continues."""
    output = torch.zeros(x.shape[0], h, w, dtype=torch.float64)
    for r, c in itertools.product(range(h), range(w)):
        y = max((r + 0.5) * x.shape[1] / h - 0.5, 0.0)
        z = max((c + 0.5) * x.shape[2] / w - 0.5, 0.0)
        for i, j in itertools.product((0, 1), (0, 1)):
            above, left = min(int(y) + i, x.shape[1] - 1), min(int(z) + j, x.shape[2] - 1)
            weight = (1 - abs(y - int(y) - i)) * (1 - abs(z - int(z) - j))
            output[:, r, c] += weight * x[:, above, left]
    return output


def redilate(x: Tensor, weight: Tensor, bias: Tensor | None, factor: float, stride: int = 1) -> Tensor:
    """Enlarge by ceil(d) / d, convolve with dilation ceil(d), come back."""
    _, h, w = x.shape
    whole = math.ceil(factor)
    enlarged = resize(x, round(h * whole / factor), round(w * whole / factor))
    output = convolve(enlarged, weight, bias, stride, whole)
    return resize(output, math.ceil(h / stride), math.ceil(w / stride))


def enlarge(x: Tensor) -> Tensor:
    """(n, n) -> (2 n - 1, 2 n - 1): points kept, means of neighbours between them."""
    n = x.shape[0]
    output = torch.zeros(2 * n - 1, 2 * n - 1, dtype=torch.float64)
    for r, c in itertools.product(range(2 * n - 1), repeat=2):
        rows, columns = {r // 2, (r + 1) // 2}, {c // 2, (c + 1) // 2}
        output[r, c] = sum(x[i, j] for i in rows for j in columns) / (len(rows) * len(columns))
    return output


@cache
def dispersion(closeness: float, grid: int = 3) -> Tensor:
    """R (25, 9) by the normal equations of the least-squares problem, unit kernel by unit kernel."""

    def correlate(kernel: Tensor, x: Tensor) -> Tensor:
        return convolve(x[None], kernel[None, None], None)[0]

    def units(side: int) -> list[Tensor]:
        return [torch.eye(side * side, dtype=torch.float64)[i].view(side, side) for i in range(side * side)]

    system, wanted = [], []
    for e in units(grid):
        system.append(torch.stack([correlate(k, enlarge(e)).flatten() for k in units(5)], 1))
        wanted.append(torch.stack([enlarge(correlate(k, e)).flatten() for k in units(3)], 1))
        system.append(closeness * torch.stack([correlate(k, e).flatten() for k in units(5)], 1))
        wanted.append(closeness * torch.stack([correlate(k, e).flatten() for k in units(3)], 1))
    left, right = torch.cat(system), torch.cat(wanted)
    return torch.linalg.solve(left.mT @ left, left.mT @ right)
