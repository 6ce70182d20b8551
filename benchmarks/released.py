"""Scale fusion in the order of operations of its release, plainly: what the attention benchmark compares with.

Every window goes through the whole layer by itself, projections included, one after another; so does the grid, or in
fast mode each of its interleaved phases. Both results are blurred along three axes, channels too, by a dense kernel.
It computes what `freescale.scale_fusion` computes with the release's choices (a test holds them to each other); no code
is taken from the release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.windows import Grid, Windows


def released_fusion(attn: Any, tokens: Tensor, windows: Windows, kernel: int, phases: Grid) -> Tensor:
    """Return the fused output (B, h * w, C) of a layer for its input (B, h * w, C)."""
    h, w = windows.grid
    x = tokens.unflatten(1, (h, w))
    low, high = windowed(attn, x, windows), interleaved(attn, x, phases)
    return (blur(low, kernel) + high - blur(high, kernel)).flatten(1, 2)


def windowed(attn: Any, x: Tensor, windows: Windows) -> Tensor:
    """Return the mean of the layer's outputs for each window, (B, h, w, C)."""
    total, count = torch.zeros_like(x), torch.zeros_like(x[:1, ..., :1])
    for top, left in windows.origins:
        place = slice(top, top + windows.window[0]), slice(left, left + windows.window[1])
        part = x[:, *place]
        total[:, *place] += attn(part.flatten(1, 2)).view(part.shape)
        count[:, *place] += 1
    return total / count


def interleaved(attn: Any, x: Tensor, phases: Grid) -> Tensor:
    """Return the layer's output for the grid, or for each phase of it, (B, h, w, C)."""
    output = torch.empty_like(x)
    for p in range(phases[0]):
        for q in range(phases[1]):
            part = x[:, p :: phases[0], q :: phases[1]]
            output[:, p :: phases[0], q :: phases[1]] = attn(part.flatten(1, 2)).view(part.shape)
    return output


def blur(x: Tensor, kernel: int) -> Tensor:
    """Return x (B, h, w, C) under a Gaussian of `kernel` taps a side along all three axes, beyond which lie zeros.

    One group of the convolution for each row of the batch.
    """
    one = torch.exp(-0.5 * torch.arange(-(kernel // 2), kernel // 2 + 1).double() ** 2)
    one = (one / one.sum()).to(x)
    cube = one[:, None, None] * one[:, None] * one
    return F.conv3d(x[None], cube.expand(len(x), 1, -1, -1, -1), padding=kernel // 2, groups=len(x))[0]
