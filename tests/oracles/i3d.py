"""I3D the slow way: TensorFlow's SAME by its own words, and the whole network from a file's tensors, in float64.

Nothing is shared with the package. The channels come from the tensors, the wiring from the papers' figures.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULES = [f"Mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]


def windows(size: int, window: int, stride: int) -> list[range]:
    """Where each window of one axis lies; negative numbers and those past the end are padding."""
    count = math.ceil(size / stride)
    total = max(window - (size % stride or stride), 0)
    return [range(i * stride - total // 2, i * stride - total // 2 + window) for i in range(count)]


def pool(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The maximum of what is inside, cell by cell."""
    axes = [windows(size, w, s) for size, w, s in zip(x.shape[-3:], window, stride, strict=True)]
    out = torch.empty(*x.shape[:2], *(len(axis) for axis in axes), dtype=x.dtype)
    for at in product(*(range(len(axis)) for axis in axes)):
        inside = [
            slice(max(axis[i].start, 0), min(axis[i].stop, size))
            for axis, i, size in zip(axes, at, x.shape[-3:], strict=True)
        ]
        out[(..., *at)] = x[(..., *inside)].amax(dim=(-3, -2, -1))
    return out


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """SAME convolution, on a canvas that has the input in its place."""
    axes = [windows(size, window, stride) for size, window in zip(x.shape[-3:], weight.shape[-3:], strict=True)]
    canvas = torch.zeros(*x.shape[:2], *(axis[-1].stop - axis[0].start for axis in axes), dtype=x.dtype)
    put = [slice(-axis[0].start, size - axis[0].start) for axis, size in zip(axes, x.shape[-3:], strict=True)]
    canvas[(..., *put)] = x
    return F.conv3d(canvas, weight, stride=stride)


def unit(state: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution, batch norm by its formula, ReLU."""
    x = convolve(x, state[f"{name}.conv3d.weight"], stride)
    bias, weight, mean, var = (
        state[f"{name}.bn.{part}"].reshape(-1, 1, 1, 1) for part in ("bias", "weight", "running_mean", "running_var")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)


def logits(state: Mapping[str, Tensor], videos: Tensor) -> Tensor:
    """(B, 400) for videos (B, 3, F, h, w)."""
    x = unit(state, "Conv3d_1a_7x7", videos, 2)
    x = unit(state, "Conv3d_2b_1x1", pool(x, (1, 3, 3), (1, 2, 2)))
    x = pool(unit(state, "Conv3d_2c_3x3", x), (1, 3, 3), (1, 2, 2))
    for name in MODULES:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        second = unit(state, f"{name}.b1b", unit(state, f"{name}.b1a", x))
        third = unit(state, f"{name}.b2b", unit(state, f"{name}.b2a", x))
        fourth = unit(state, f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))
        x = torch.cat([unit(state, f"{name}.b0", x), second, third, fourth], dim=1)
    x = x.mean(dim=(-3, -2, -1))
    return x @ state["logits.conv3d.weight"][:, :, 0, 0, 0].T + state["logits.conv3d.bias"]
