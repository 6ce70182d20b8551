"""Views of a canvas of latents: parts of a larger picture that a model sees one by one, and their sum.

A view is the product of its rows and its columns, in latent cells; where those lie outside the canvas it reads a
stand-in and writes nothing. `Denoiser.for_views` tells a size-conditioned model where each view lies. Which views a
canvas gets is the method's choice (`methods/demofusion/views.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from freescale.windows import Grid

Outside = Literal["mirror", "zero"]
"""What a view reads beyond the canvas: the mirrored inside, or zeros (which no noisy picture has)."""


@dataclass(frozen=True, eq=False)
class Views:
    """Views of equal size over a canvas of latent cells, in a fixed order."""

    canvas: Grid
    rows: Tensor  # (views, vh) int64
    columns: Tensor  # (views, vw) int64
    crops: Tensor  # (views, 2) int64, pixels: (top, left) that the model is told
    outside: Outside = "mirror"

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, length: int) -> Iterator[Views]:
        """Yield the same views in order, at most `length` at a time."""
        parts = (torch.split(x, length) for x in (self.rows, self.columns, self.crops))
        for rows, columns, crops in zip(*parts, strict=True):
            yield Views(self.canvas, rows, columns, crops, self.outside)

    def take(self, canvas: Tensor) -> Tensor:
        """Return the views (views * B, C, [F,] vh, vw) of a canvas (B, C, [F,] h, w), views outermost."""
        return torch.cat([self._read(canvas, y, x) for y, x in zip(self.rows, self.columns, strict=True)])

    def add(self, parts: Tensor, total: Tensor, count: Tensor, weights: Tensor | None = None) -> None:
        """Add the views `parts` (as from `take`) to `total` (as the canvas), and 1 to `count` (h, w) at each cell.

        With `weights` (vh, vw) a cell of a view counts by its weight, in both.
        """
        sets = zip(parts.chunk(len(self)), self.rows, self.columns, strict=True)
        for part, y, x in sets:
            rows, columns = (_is_inside(at, n) for at, n in zip((y, x), self.canvas, strict=True))
            cells = y[rows][:, None], x[columns]
            inside = part[..., rows, :][..., columns].to(total)
            share = None if weights is None else weights[rows][:, columns]
            total[..., *cells] += inside if share is None else share.to(total) * inside
            count[cells] += 1 if share is None else share.to(count)

    def _read(self, canvas: Tensor, y: Tensor, x: Tensor) -> Tensor:
        h, w = self.canvas
        read = canvas[..., _mirrored(y, h)[:, None], _mirrored(x, w)]
        if self.outside == "zero":
            is_inside = _is_inside(y, h)[:, None] & _is_inside(x, w)
            read = torch.where(is_inside.to(read.device), read, torch.zeros_like(read))
        return read


def feather(view: Grid, width: float) -> Tensor:
    """Return weights (vh, vw), float32, that fall from a view's centre: a Gaussian, `width` sides of the view wide."""
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / (width * n) for n in view]
    y, x = (torch.exp(-(axis**2) / 2) for axis in axes)
    return (y[:, None] * x).float()


def _is_inside(at: Tensor, length: int) -> Tensor:
    return (at >= 0) & (at < length)


def _mirrored(at: Tensor, length: int) -> Tensor:
    """Walk outwards from the border and back in, without repeating the edge."""
    period = max(2 * (length - 1), 1)
    at = at.remainder(period)
    return torch.minimum(at, period - at).clamp(max=length - 1)
