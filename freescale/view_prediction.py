"""The noise of a large picture, predicted view by view and averaged where views overlap.

For a solver whose step is affine in the noise, with the same numbers in every view, one step with averaged noise is
the average of steps taken in each view. It also keeps solvers with a memory or fresh noise well defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from freescale.portions import each
from freescale.views import Views, feather
from freescale.windows import place_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.cascade import Level
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.views import Outside
    from freescale.windows import Windows

Crops = Literal["origin", "padded", "none"]
"""The crop that a size-conditioned model is told for a window: where it lies, where it lies on a canvas padded by
the reach of the jitter (as DemoFusion released it), or the corner for all. Dilated views are the whole picture: the
corner."""

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


def feathered_views(level: Level, width: float) -> tuple[Views, Tensor | None]:
    """Return windows of the training size, half overlapping, and their weights (`views.feather`); none for width 0."""
    windows = place_windows(level.latent_hw, level.scale)
    return window_views(windows, level.cell), feather(windows.window, width) if width else None


def predict_views(
    denoiser: Denoiser, latents: Tensor, views: Views, moment: Moment, weights: Tensor | None = None
) -> Tensor:
    """Return the noise prediction (as the latents) made view by view, averaged where views overlap.

    `weights` (vh, vw) of the cells of a view; None: all count alike. Views are added one by one in their order, so
    their chunks change rounding inside the UNet at most.
    """

    def ask(denoiser: Denoiser, seen: Tensor) -> Tensor:
        """Return the guided prediction of some views."""
        return denoiser(seen, moment.step, moment.schedule)

    return _averaged(denoiser, latents, views, moment, ask, weights)


def pair_views(
    denoiser: Denoiser, latents: Tensor, views: Views, moment: Moment, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the raw (negative, positive) outputs, each as the latents, made view by view and averaged."""

    def ask(denoiser: Denoiser, seen: Tensor) -> Tensor:
        """Return both outputs of some views, one after the other along the channels."""
        return torch.cat(denoiser.pair(seen, moment.step, moment.schedule), 1)

    negative, positive = _averaged(denoiser, latents, views, moment, ask, weights, sides=2).chunk(2, 1)
    return negative, positive


def _averaged(
    denoiser: Denoiser,
    latents: Tensor,
    views: Views,
    moment: Moment,
    ask: Callable[[Denoiser, Tensor], Tensor],
    weights: Tensor | None = None,
    sides: int = 1,
) -> Tensor:
    """Return what `ask` gives for the views, `sides` times as many channels as the latents have, averaged."""
    batch, channels, *rest = latents.shape
    dtype = torch.promote_types(latents.dtype, torch.float32)
    total = torch.zeros((batch, sides * channels, *rest), dtype=dtype, device=latents.device)
    count = torch.zeros(views.canvas)
    most = max(1, VIEWS_AT_ONCE // (latents.shape[2] if latents.ndim == 5 else 1))
    at_once = min(most, max(1, (moment.compute.window_rows or most * batch) // batch))
    for chunk in each(list(views.chunks(at_once)), len):
        made = ask(denoiser.for_views(chunk, batch), chunk.take(latents))
        chunk.add(made, total, count, weights)
    return total / count.to(total)
