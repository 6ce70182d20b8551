"""What videos add, the slow way: DDIM under a dynamic scale, and attention over frames in windows.

float64 and loops; nothing is shared with the package.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def tables(total: int = 1000) -> tuple[list[float], list[float]]:
    """(alpha_cumprod, scale) of every timestep of VideoCrafter2: betas from 0.00085 to 0.012, scale from 1 to 0.7."""
    roots = [math.sqrt(0.00085) + k * (math.sqrt(0.012) - math.sqrt(0.00085)) / (total - 1) for k in range(total)]
    bars, bar = [], 1.0
    for root in roots:
        bar *= 1.0 - root * root
        bars.append(bar)
    return bars, [1.0 - 0.3 * min(t, 399) / 399 for t in range(total)]


def noised(x0: Tensor, noise: Tensor, t: int) -> Tensor:
    """The forward process, in the model's own coordinates."""
    bars, scales = tables()
    return math.sqrt(bars[t]) * scales[t] * x0 + math.sqrt(1.0 - bars[t]) * noise


def ddim(
    x: Tensor, model: Callable[[Tensor, int], Tensor], steps: int, eta: float = 0.0, noises: Sequence[Tensor] = ()
) -> Tensor:
    """All steps from x at the noisiest timestep, 981 for 50 steps, in the model's own coordinates."""
    bars, scales = tables()
    stride = 1000 // steps
    for i in range(steps):
        t = (steps - 1 - i) * stride + 1
        earlier = t - stride
        bar, scale = bars[t], scales[t]
        next_bar, next_scale = (bars[earlier], scales[earlier]) if earlier >= 0 else (bars[0], scales[0])
        noise_pred = model(x, t)
        x0 = (x - math.sqrt(1.0 - bar) * noise_pred) / math.sqrt(bar) / scale
        spread = eta * math.sqrt((1.0 - next_bar) / (1.0 - bar) * (1.0 - bar / next_bar))
        x = math.sqrt(next_bar) * next_scale * x0 + math.sqrt(1.0 - next_bar - spread**2) * noise_pred
        if eta:
            x = x + spread * noises[i]
    return x


def windowed(layer: Callable[[Tensor], Tensor], tokens: Tensor, window: int, stride: int, positions: Any) -> Tensor:
    """(F, C) -> (F, C): the layer on every window of frames, a frame's outputs averaged by their place in theirs."""
    frames = len(tokens)
    sums, weights = [torch.zeros_like(tokens[0]) for _ in range(frames)], [0.0] * frames
    firsts, first = [], 0
    while first + window < frames:
        firsts.append(first)
        first += stride
    for first in [*firsts, frames - window]:
        seen = torch.stack([tokens[first + k] + positions[k] for k in range(window)])
        for k, value in enumerate(layer(seen)):
            weight = float(min(k + 1, window - k))
            sums[first + k] = sums[first + k] + weight * value
            weights[first + k] += weight
    return torch.stack([total / weight for total, weight in zip(sums, weights, strict=True)])
