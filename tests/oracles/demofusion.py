"""One step of DemoFusion the slow way, written from the paper (arXiv:2311.16973, section 4) and its release.

float64 and loops. Every window and every dilated view takes its own Euler step from the noise predicted for it, and
the stepped latents are averaged; nothing is shared with the package. `noise_of(view, rows, columns)` is the model:
the noise of a view (C, vh, vw) that shows the given rows and columns of the canvas (None beyond it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Model = Callable[[Tensor, Sequence[int | None], Sequence[int | None]], Tensor]


def local(z: Tensor, model: Model, window: tuple[int, int], origins: Sequence[tuple[int, int]], dt: float) -> Tensor:
    """Each window stepped, zeros where it leaves the canvas, then averaged cell by cell."""
    channels, h, w = z.shape
    total, count = torch.zeros_like(z), torch.zeros(h, w, dtype=z.dtype)
    for top, left in origins:
        view = torch.zeros(channels, *window, dtype=z.dtype)
        rows = [r if 0 <= r < h else None for r in range(top, top + window[0])]
        columns = [c if 0 <= c < w else None for c in range(left, left + window[1])]
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                if r is not None and c is not None:
                    view[:, i, j] = z[:, r, c]
        stepped = view + dt * model(view, rows, columns)
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                if r is not None and c is not None:
                    total[:, r, c] += stepped[:, i, j]
                    count[r, c] += 1
    return total / count


def dilated(z: Tensor, seen: Tensor, model: Model, factor: int, dt: float, *, mirror: bool) -> Tensor:
    """Each interleaved view of `seen` gives the noise by which the same cells of z are stepped.

    Sides that do not divide are padded at the top and the left, with zeros or with the mirrored inside.
    """
    channels, h, w = z.shape
    pad_h, pad_w = -h % factor, -w % factor
    output = torch.zeros_like(z)
    for p in range(factor):
        for q in range(factor):
            rows = [r - pad_h for r in range(p, h + pad_h, factor)]
            columns = [c - pad_w for c in range(q, w + pad_w, factor)]
            view = torch.zeros(channels, len(rows), len(columns), dtype=z.dtype)
            for i, r in enumerate(rows):
                for j, c in enumerate(columns):
                    if mirror or (r >= 0 and c >= 0):
                        view[:, i, j] = seen[:, abs(r), abs(c)]
            known = [[k if k >= 0 else None for k in axis] for axis in (rows, columns)]
            noise = model(view, known[0], known[1])
            for i, r in enumerate(rows):
                for j, c in enumerate(columns):
                    if r >= 0 and c >= 0:
                        output[:, r, c] = z[:, r, c] + dt * noise[:, i, j]
    return output


def smooth(z: Tensor, kernel: int, sigma: float) -> Tensor:
    """A 2-D Gaussian of kernel x kernel taps, zeros beyond the border, set back to the mean and deviation of z."""
    reach = range(-(kernel // 2), kernel // 2 + 1)
    weights = {(u, v): math.exp(-(u * u + v * v) / (2 * sigma**2)) for u in reach for v in reach}
    whole = sum(weights.values())
    output = torch.zeros_like(z)
    for r in range(z.shape[1]):
        for c in range(z.shape[2]):
            for (u, v), weight in weights.items():
                if 0 <= r + u < z.shape[1] and 0 <= c + v < z.shape[2]:
                    output[:, r, c] += weight / whole * z[:, r + u, c + v]
    return standardised(output, z)


def standardised(x: Tensor, like: Tensor) -> Tensor:
    """x with the mean and the deviation of all values of `like`."""

    def moments(values: list[float]) -> tuple[float, float]:
        mean = math.fsum(values) / len(values)
        return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))

    mean, deviation = moments(x.flatten().tolist())
    wanted = moments(like.flatten().tolist())
    return (x - mean) / deviation * wanted[1] + wanted[0]
