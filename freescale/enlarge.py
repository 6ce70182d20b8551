"""Enlarging latents and pixels: one level's result becomes the next one's reference.

FreeScale enlarges pixels for pictures and latents, which are not decoded, for videos: the blur of enlarged pixels helps
pictures and hurts videos. White noise loses deviation by enlargement as latents: at twice the size bilinear leaves 0.63
of it, bicubic 0.86, nearest 1.00; nothing makes up for that.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from freescale.frequency import blur_plane, gaussian_taps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.cascade import Size

Interpolation = Literal["bilinear", "bicubic", "nearest"]
"""Of latents."""

PictureFilter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""Of pixels."""


def enlarge_latents(latents: Tensor, latent_hw: Size, mode: Interpolation | None = None) -> Tensor:
    """Return latents (B, C, [F,] h, w) at `latent_hw`, each frame by itself; None: bicubic. Corners are not aligned."""
    frames = latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)
    aligned = None if mode == "nearest" else False
    larger = F.interpolate(frames, size=latent_hw, mode=mode or "bicubic", align_corners=aligned)
    if latents.ndim == 4:
        return larger
    return larger.view(latents.shape[0], -1, *larger.shape[1:]).transpose(1, 2).contiguous()


def enlarged_region(
    read: Callable[[tuple[int, int], tuple[int, int]], Tensor],
    source: Size,
    target: Size,
    rows: tuple[int, int],
    columns: tuple[int, int],
    kind: PictureFilter = "bicubic",
) -> Tensor:
    """Return a region (B, C, rows, columns) of a picture enlarged from `source` to `target`.

    `read(rows, columns)` gives a region of the picture, in float32 or float64; only what the taps touch is read.
    Corners are not aligned and borders repeat. All but `lanczos` equal `F.interpolate` of the whole to rounding.
    """
    down, needed_rows = _weights(rows, source[0], target[0], kind)
    across, needed_columns = _weights(columns, source[1], target[1], kind)
    part = read(needed_rows, needed_columns)
    return down.to(part) @ part @ across.to(part).T


def sharpened_region(
    read: Callable[[tuple[int, int], tuple[int, int]], Tensor],
    size: Size,
    rows: tuple[int, int],
    columns: tuple[int, int],
    amount: float,
    sigma: float,
) -> Tensor:
    """Return a region (B, C, rows, columns) of a picture of `size` after an unsharp mask: I + amount * (I - G(I)).

    G is a Gaussian of 3x3 taps and deviation `sigma` in pixels; borders are mirrored without the edge. `read(rows,
    columns)` gives a region of the picture, in float32 or float64.
    """
    spans, pads = [], list[int]()
    for (first, stop), side in zip((rows, columns), size, strict=True):
        before, after = min(first, 1), min(side - stop, 1)
        spans.append((first - before, stop + after))
        pads = [1 - before, 1 - after, *pads]
    part = F.pad(read(spans[0], spans[1]), pads, mode="reflect")
    inner = part[..., 1:-1, 1:-1]
    return inner + amount * (inner - blur_plane(part, gaussian_taps(3, sigma))[..., 1:-1, 1:-1])


TILE, MARGIN = 256, 32
"""Pixels of a tile's side that a network enlarges at once, and those around it that it sees as well."""


def enlarged_by(
    network: Callable[[Tensor], Tensor], scale: int, picture: Tensor, size: Size, *, by_tiles: bool = True
) -> Tensor:
    """Return a picture (1, 3, H, W) in [-1, 1] of `size`, enlarged by a network for (1, 3, h, w) in [0, 1].

    It is asked as often as the size needs; what is then too large is shrunk by bicubic interpolation with antialiasing.
    """
    image = ((picture + 1.0) / 2.0).clamp(0.0, 1.0)
    while image.shape[-2] < size[0] or image.shape[-1] < size[1]:
        image = _by_tiles(network, scale, image, max(TILE, 0 if by_tiles else max(image.shape[-2:])))
    if image.shape[-2:] != size:
        image = F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0.0, 1.0)
    return 2.0 * image - 1.0


def _by_tiles(network: Callable[[Tensor], Tensor], scale: int, image: Tensor, side: int) -> Tensor:
    """Return the picture that a network makes of tiles of `side` pixels, each seen with its margin."""
    height, width = image.shape[-2:]
    larger = image.new_empty(*image.shape[:2], scale * height, scale * width)
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        bottom, right = min(top + side, height), min(left + side, width)
        first_row, first_column = max(top - MARGIN, 0), max(left - MARGIN, 0)
        tile = network(image[..., first_row : bottom + MARGIN, first_column : right + MARGIN])
        rows = slice(scale * (top - first_row), scale * (bottom - first_row))
        columns = slice(scale * (left - first_column), scale * (right - first_column))
        larger[..., scale * top : scale * bottom, scale * left : scale * right] = tile[..., rows, columns]
    return larger


def _weights(span: tuple[int, int], source: int, target: int, kind: PictureFilter) -> tuple[Tensor, tuple[int, int]]:
    """Return the weights (span, needed span) along one axis, and the span that is needed.

    Positions are computed in float32, as torch computes those of a float32 picture.
    """
    scale = torch.tensor(source, dtype=torch.float32) / target
    position = scale * (torch.arange(*span, dtype=torch.float32) + 0.5) - 0.5
    if kind == "nearest":
        position = (scale * torch.arange(*span, dtype=torch.float32)).floor()
    first = position.floor()
    reach, kernel = KERNELS[kind]
    distance = (position - first).double()[:, None] - torch.arange(1 - reach, reach + 1)
    weights = kernel(distance)
    taps = (first.long()[:, None] + torch.arange(1 - reach, reach + 1)).clamp(0, source - 1)
    low, high = int(taps.min()), int(taps.max()) + 1
    matrix = torch.zeros(len(taps), high - low, dtype=torch.float64)
    return matrix.scatter_add_(1, taps - low, weights), (low, high)


def _nearest(distance: Tensor) -> Tensor:
    return (distance == 0).double()


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic with a = -0.75."""
    x = distance.abs()
    inner = (1.25 * x - 2.25) * x * x + 1
    outer = ((-0.75 * x + 3.75) * x - 6) * x + 3
    return torch.where(x <= 1, inner, outer)


def _lanczos(distance: Tensor) -> Tensor:
    """Three lobes, scaled to sum to 1."""
    weights = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
    return weights / weights.sum(1, keepdim=True)


KERNELS: dict[PictureFilter, tuple[int, Callable[[Tensor], Tensor]]] = {
    "nearest": (1, _nearest),
    "bilinear": (1, _linear),
    "bicubic": (2, _cubic),
    "lanczos": (3, _lanczos),
}
"""For each filter the taps on each side, and the weight of a tap by its distance in source pixels."""
