"""The views of DemoFusion: its windows are `view_prediction.window_views`, and dilated views show the whole.

Windows are contiguous and overlap (MultiDiffusion, arXiv:2302.08113); dilated views take every s-th cell, s * s of them
interleaved, each a small picture of the whole scene (DemoFusion, arXiv:2311.16973, "Dilated Sampling").
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from freescale.views import Views

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.views import Outside
    from freescale.windows import Grid


def dilated_views(canvas: Grid, factor: int, outside: Outside = "mirror") -> Views:
    """Return the factor * factor interleaved views; a side that does not divide is padded at its start."""
    axes = [
        torch.stack([torch.arange(p - (-length % factor), length, factor) for p in range(factor)]) for length in canvas
    ]
    phases = torch.tensor(list(itertools.product(range(factor), repeat=2)))
    rows, columns = axes[0][phases[:, 0]], axes[1][phases[:, 1]]
    return Views(canvas, rows, columns, torch.zeros_like(phases), outside)


def match_moments(x: Tensor, like: Tensor) -> Tensor:
    """Return x with the mean and the deviation of `like`, picture by picture over all other axes."""
    axes, other = tuple(range(1, x.ndim)), tuple(range(1, like.ndim))
    normed = (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)
    return normed * like.std(other, keepdim=True) + like.mean(other, keepdim=True)
