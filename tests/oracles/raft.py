"""RAFT the slow way: look-ups and upsampling pixel by pixel, the network from a file's tensors, in float64.

Nothing is shared with the package.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping


def bilinear(values: list[list[float]], x: float, y: float) -> float:
    """Between the four cells around a point; those outside are 0."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(values) and 0 <= column < len(values[0]):
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * values[row][column]
    return total


def halved(values: list[list[float]]) -> list[list[float]]:
    """Means of 2x2 cells; a last odd row or column is left out."""
    rows = range(len(values) // 2)
    columns = range(len(values[0]) // 2)
    return [[sum(values[2 * r + i][2 * c + j] for i in (0, 1) for j in (0, 1)) / 4 for c in columns] for r in rows]


def looked_up(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """(324, h, w): scalar products of features (C, h, w) over sqrt(C), of four scales, 9x9 around each cell's target.

    x is the outer of the two offsets and y the inner one.
    """
    channels, height, width = first.shape
    out = torch.empty(324, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            values = (torch.einsum("c,chw->hw", first[:, row, column], second) / math.sqrt(channels)).tolist()
            x, y = column + float(flow[0, row, column]), row + float(flow[1, row, column])
            found = []
            for level in range(4):
                scale = 2**level
                found += [bilinear(values, x / scale + i, y / scale + j) for i in range(-4, 5) for j in range(-4, 5)]
                values = halved(values)
            out[:, row, column] = torch.tensor(found, dtype=torch.float64)
    return out


def upsampled(flow: Tensor, mask: Tensor) -> Tensor:
    """(2, 8 h, 8 w): each pixel the softmax of nine logits over eight times the flow of the cells around it."""
    _, height, width = flow.shape
    out = torch.zeros(2, 8 * height, 8 * width, dtype=torch.float64)
    for row in range(8 * height):
        for column in range(8 * width):
            cell = (row // 8, column // 8)
            logits = [float(mask[n * 64 + (row % 8) * 8 + column % 8, cell[0], cell[1]]) for n in range(9)]
            shares = [math.exp(logit) for logit in logits]
            for n, share in enumerate(shares):
                r, c = cell[0] + n // 3 - 1, cell[1] + n % 3 - 1
                if 0 <= r < height and 0 <= c < width:
                    out[:, row, column] += share / sum(shares) * 8 * flow[:, r, c]
    return out


def conv(state: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """With its bias, and zeros so that stride 1 keeps the size."""
    weight = state[f"{name}.weight"]
    pads = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    return F.conv2d(x[None], weight, state[f"{name}.bias"], stride, pads)[0]


def norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """By the file's statistics where it has some, else by the picture's own."""
    if f"{name}.running_mean" not in state:
        mean, var = x.mean(dim=(1, 2), keepdim=True), x.var(dim=(1, 2), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"{name}.{part}"].reshape(-1, 1, 1) for part in parts)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def encoded(state: Mapping[str, Tensor], net: str, x: Tensor) -> Tensor:
    """(256, h / 8, w / 8)."""
    x = norm(state, f"{net}.norm1", conv(state, f"{net}.conv1", x, 2)).clamp(min=0)
    for layer in (1, 2, 3):
        for block in (0, 1):
            name = f"{net}.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = norm(state, f"{name}.norm1", conv(state, f"{name}.conv1", x, stride)).clamp(min=0)
            y = norm(state, f"{name}.norm2", conv(state, f"{name}.conv2", y)).clamp(min=0)
            if stride == 2:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, 2))
            x = (x + y).clamp(min=0)
    return conv(state, f"{net}.conv2", x)


def gated(state: Mapping[str, Tensor], hidden: Tensor, x: Tensor) -> Tensor:
    """Equations 3 to 6 of the paper, with 1x5 and then 5x1 kernels."""
    for number in (1, 2):
        name = "update_block.gru.conv{}" + str(number)
        z = conv(state, name.format("z"), torch.cat([hidden, x])).sigmoid()
        r = conv(state, name.format("r"), torch.cat([hidden, x])).sigmoid()
        q = conv(state, name.format("q"), torch.cat([r * hidden, x])).tanh()
        hidden = (1 - z) * hidden + z * q
    return hidden


def flow_of(state: Mapping[str, Tensor], first: Tensor, second: Tensor, iterations: int) -> Tensor:
    """(2, H, W) for frames (3, H, W) in 0…255 whose sides are multiples of 8."""
    a, b = (2 * frame.double() / 255 - 1 for frame in (first, second))
    features = encoded(state, "fnet", a), encoded(state, "fnet", b)
    context = encoded(state, "cnet", a)
    hidden, given = context[:128].tanh(), context[128:].clamp(min=0)
    flow = torch.zeros(2, *hidden.shape[1:], dtype=torch.float64)
    for _ in range(iterations):
        found = conv(state, "update_block.encoder.convc1", looked_up(*features, flow)).clamp(min=0)
        found = conv(state, "update_block.encoder.convc2", found).clamp(min=0)
        moved = conv(state, "update_block.encoder.convf1", flow).clamp(min=0)
        moved = conv(state, "update_block.encoder.convf2", moved).clamp(min=0)
        motion = conv(state, "update_block.encoder.conv", torch.cat([found, moved])).clamp(min=0)
        hidden = gated(state, hidden, torch.cat([given, motion, flow]))
        change = conv(state, "update_block.flow_head.conv1", hidden).clamp(min=0)
        flow = flow + conv(state, "update_block.flow_head.conv2", change)
    mask = conv(state, "update_block.mask.2", conv(state, "update_block.mask.0", hidden).clamp(min=0)) / 4
    return upsampled(flow, mask)
