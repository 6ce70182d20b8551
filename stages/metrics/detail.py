"""What plain enlargement lacks and a broken method has too much of: detail by octave, sharp edges, repetition.

Counts of objects and distances of features look at shrunken pictures, so they cannot tell an enlarged picture from one
with detail. These read the picture at its own size, in grey (Rec. 601), without any network:

* energy in three octaves of period, 2 to 4, 4 to 8 and 8 to 16 pixels, over that of the reference. 1 is right; more is
  false texture;
* edge sharpness: how steep the steepest part of the picture is against its contrast;
* repetition: the highest peak of the autocorrelation beyond the training size, where objects begin to repeat.

`docs/reference/metrics.md` says which of them tell good from bad on true, blurred, tiled and noisy scenes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import fft, ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

OCTAVES = (2, 4, 8)  # pixels: shortest period of each
GREY = (0.299, 0.587, 0.114)
STEEPEST = 99.5  # percentile of the gradient
SMOOTH = 1.0  # pixels, before the gradient is taken
OVERLAP = 0.25  # of the picture, at least, where two copies are compared
WORDS = ("detail_2", "detail_4", "detail_8", "sharpness", "repetition")
"""What a reading has, in its order."""


def read_detail(pixels: Tensor, base_side: float) -> Tensor:
    """Return the `WORDS` of a picture (3, H, W) uint8, float64: mean squares in levels of 255, then two numbers from 0.

    `base_side` is the side of a training picture in pixels, the mean of both where they differ. Raises `ValueError` for
    a picture smaller than 16 pixels a side.
    """
    if min(pixels.shape[-2:]) < 16:
        raise ValueError(f"detail of a picture of {tuple(pixels.shape[-2:])} pixels, allowed: sides of 16 or more")
    grey = np.tensordot(np.array(GREY), pixels.numpy().astype(np.float64), 1)
    found = [*octave_energies(grey), sharpness(grey), repetition(grey, base_side)]
    return torch.tensor(found, dtype=torch.float64)


def octave_energies(grey: NDArray[Any]) -> list[float]:
    """Return the mean square of a picture (H, W) within each of `OCTAVES`, by its cosine transform."""
    spectrum = fft.dctn(grey, norm="ortho") ** 2
    rows, columns = (np.arange(n) / (2 * n) for n in grey.shape)  # cycles a pixel
    period = 1 / np.maximum(np.hypot(rows[:, None], columns), 1e-9)
    return [float(spectrum[(period >= low) & (period < 2 * low)].sum() / grey.size) for low in OCTAVES]


def sharpness(grey: NDArray[Any]) -> float:
    """Return the steepest gradient of a picture (H, W), a pixel, over its contrast: 1 would be a step within a pixel.

    The gradient is that of the picture blurred by a pixel, so that noise of single pixels does not count.
    """
    steep = np.percentile(ndimage.gaussian_gradient_magnitude(grey, SMOOTH), STEEPEST)
    contrast = np.percentile(grey, 99) - np.percentile(grey, 1)
    return float(steep / contrast) if contrast > 1 else 0.0


def repetition(grey: NDArray[Any], base_side: float) -> float:
    """Return the highest autocorrelation of a picture (H, W) at a shift of `base_side` or more, 0 to 1.

    The picture is high-passed at half that side first, so that a ground that is bright on one side does not count. Both
    copies are compared where they overlap, by the deviation that each has there. 0 where no such shift leaves enough.
    """
    detail = grey - ndimage.gaussian_filter(grey, base_side / 2, mode="nearest")
    size = [2 * n for n in grey.shape]
    spectrum = np.fft.rfft2(detail, size)
    energy, ones = np.fft.rfft2(detail**2, size), np.fft.rfft2(np.ones_like(detail), size)
    products = np.fft.irfft2(spectrum * spectrum.conj(), size)
    first, second = (np.fft.irfft2(pair, size) for pair in (energy.conj() * ones, ones.conj() * energy))
    dy, dx = (np.minimum(np.arange(n), n - np.arange(n)) for n in size)
    overlap = np.maximum(grey.shape[0] - dy, 0)[:, None] * np.maximum(grey.shape[1] - dx, 0)
    counts = (np.hypot(dy[:, None], dx) >= base_side) & (overlap >= OVERLAP * grey.size)
    if not counts.any():
        return 0.0
    scale = np.sqrt(np.maximum(first[counts], 0) * np.maximum(second[counts], 0))
    least = 1e-3 * math.sqrt(float(np.square(detail).sum()) ** 2)  # shifts that overlap in nothing but ground
    peak = float((products[counts] / np.maximum(scale, max(least, 1e-9))).max())
    return min(max(peak, 0.0), 1.0)
