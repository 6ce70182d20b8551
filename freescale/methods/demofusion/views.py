"""The views of DemoFusion, and the noise that is predicted view by view.

Two kinds cover the canvas. Windows are contiguous and overlap (MultiDiffusion, arXiv:2302.08113); dilated views take
every s-th cell, s * s of them interleaved, each a small picture of the whole scene (DemoFusion, arXiv:2311.16973,
"Dilated Sampling").

For a solver whose step is affine in the noise, with the same numbers in every view, one step with averaged noise is
the average of steps taken in each view. It also keeps solvers with a memory or fresh noise well defined.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import torch

from freescale.portions import each
from freescale.views import Views

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.views import Outside
    from freescale.windows import Grid, Windows

Crops = Literal["origin", "padded", "none"]
"""The crop that a size-conditioned model is told for a window: where it lies, where it lies on a canvas padded by
the reach of the jitter (as released), or the corner for all. Dilated views are the whole picture: the corner."""

VIEWS_AT_ONCE = 16
"""Most views in one UNet call, as in DemoFusion's release, unless memory asks for fewer. Of videos, frames count."""


def window_views(windows: Windows, cell: int, outside: Outside = "mirror", crops: Crops = "origin") -> Views:
    """Return windows of latent cells as views; `cell` is the pixels of a cell's side."""
    (h, w), (wh, ww) = windows.grid, windows.window
    origins = windows.places
    told = {
        "origin": origins.clamp(min=0),
        "padded": origins + torch.tensor([wh // 8 if wh < h else 0, ww // 8 if ww < w else 0]),
        "none": torch.zeros_like(origins),
    }
    rows, columns = origins[:, :1] + torch.arange(wh), origins[:, 1:] + torch.arange(ww)
    return Views(windows.grid, rows, columns, told[crops] * cell, outside)


def dilated_views(canvas: Grid, factor: int, outside: Outside = "mirror") -> Views:
    """Return the factor * factor interleaved views; a side that does not divide is padded at its start."""
    axes = [
        torch.stack([torch.arange(p - (-length % factor), length, factor) for p in range(factor)]) for length in canvas
    ]
    phases = torch.tensor(list(itertools.product(range(factor), repeat=2)))
    rows, columns = axes[0][phases[:, 0]], axes[1][phases[:, 1]]
    return Views(canvas, rows, columns, torch.zeros_like(phases), outside)


def predict_views(denoiser: Denoiser, latents: Tensor, views: Views, moment: Moment) -> Tensor:
    """Return the noise prediction (as the latents) made view by view, averaged where views overlap.

    Views are added one by one in their order, so their chunks change rounding inside the UNet at most.
    """
    batch = latents.shape[0]
    total = torch.zeros(latents.shape, dtype=torch.promote_types(latents.dtype, torch.float32), device=latents.device)
    count = torch.zeros(views.canvas)
    most = max(1, VIEWS_AT_ONCE // (latents.shape[2] if latents.ndim == 5 else 1))
    at_once = min(most, max(1, (moment.compute.window_rows or most * batch) // batch))
    for chunk in each(list(views.chunks(at_once)), len):
        noise_pred = denoiser.for_views(chunk, batch)(chunk.take(latents), moment.step, moment.schedule)
        chunk.add(noise_pred, total, count)
    return total / count.to(total)


def match_moments(x: Tensor, like: Tensor) -> Tensor:
    """Return x with the mean and the deviation of `like`, picture by picture over all other axes."""
    axes, other = tuple(range(1, x.ndim)), tuple(range(1, like.ndim))
    normed = (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)
    return normed * like.std(other, keepdim=True) + like.mean(other, keepdim=True)
