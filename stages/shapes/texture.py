"""Reading the texture of an object of `shapes`: plain, striped or dotted, and how far stripes or dots are apart.

The paint of the largest object is taken as a picture of its own, brightness over the mean, and searched for its
strongest wave. Stripes have one direction and dots two. The period is given in radii of the object, which is read from
its outline, so that one number is right at every size. Thresholds are those of true renderings
(`tests/stages/test_texture.py`), enlarged and blurred ones too, and of no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import fft, ndimage
from torch.nn import functional as F

from stages.shapes.metrics import BASE_AREA, parse_caption, radius_of, read_with_mask
from stages.shapes.scenes import PERIODS, SHAPES, TEXTURES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

DEPTH = 0.08  # deviation of brightness over its mean: plain paint has 0.01 at most, dots 0.15, stripes 0.22
CROSSING = 0.4  # power of the wave at right angles over that of the strongest: stripes have 0.01, dots 0.8
RIM = 0.03  # radii: what is left away at the outline, where paint and ground mix
SLOWEST, FASTEST = 1.0, 16.0  # waves a radius that are looked for; stripes have 2
SAMPLES = 128  # along the longer side of the object, at most
LEAST = 100  # samples of paint
WITHIN = 0.25  # of the true period: what counts as right


@dataclass(frozen=True)
class FoundTexture:
    """A word of `TEXTURES`, and the period in radii of the object: 0 where it is plain."""

    texture: str
    period: float


def asked_texture(caption: str) -> str:
    """Return the texture that a caption asks for. Raises `ValueError` for what is no caption."""
    parse_caption(caption)
    return next((word for word in caption.lower().split() if word in TEXTURES), "plain")


def period_ratio(found: FoundTexture | None, texture: str) -> float:
    """Return the period over that of a true `texture`, as a ratio of 1 where it is right; 0 where there is none."""
    return 0.0 if found is None else found.period / PERIODS[texture]


def read_texture(image: Tensor, *, base_area: int = BASE_AREA) -> FoundTexture | None:
    """Read the largest object of `image` (3, H, W) in [-1, 1]; None where there is none, or too little of it."""
    reading, mask = read_with_mask(image, base_area=base_area)
    if not reading.objects:
        return None
    y, x = np.nonzero(mask)
    radius = math.sqrt(y.var() + x.var()) / _spread(reading.objects[0].shape)
    inner = ndimage.binary_erosion(mask, iterations=max(2, round(RIM * radius)))
    part = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
    paint, inner, scale = _sampled(image[:, *part].float().amax(0).add(1).div(2).numpy(), inner[part])
    if inner.sum() < LEAST:
        return None
    wave = np.where(inner > 0.5, paint / paint[inner > 0.5].mean() - 1, 0.0)
    depth = math.sqrt(float(np.square(wave).sum() / (inner > 0.5).sum()))
    if depth < DEPTH:
        return FoundTexture("plain", 0.0)
    period, crossing = _strongest(wave, radius * scale)
    return FoundTexture("dotted" if crossing > CROSSING else "striped", period)


def _sampled(paint: NDArray[Any], inner: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Brightness and mask (h, w) with at most `SAMPLES` a side, by averages over the mask, and samples a pixel."""
    factor = math.ceil(max(paint.shape) / SAMPLES)
    both = torch.from_numpy(np.stack([paint * inner, inner]).astype(np.float32))[None]
    summed, weight = F.avg_pool2d(both, factor, ceil_mode=True, count_include_pad=False)[0].double().numpy()
    return summed / np.maximum(weight, 1e-6), weight, 1 / factor


def _strongest(wave: NDArray[Any], radius: float) -> tuple[float, float]:
    """Return the period of the strongest wave in radii, and the power at right angles to it over its own.

    `radius` is in samples.
    """
    side = fft.next_fast_len(4 * max(wave.shape), real=True)
    power = np.abs(fft.rfft2(wave, (side, side))) ** 2
    rows, columns = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    waves = np.hypot(rows[:, None], columns) * radius
    power[(waves < SLOWEST) | (waves > FASTEST)] = 0.0
    y, x = np.unravel_index(int(power.argmax()), power.shape)
    down, right = (round(float(f) * side) for f in (rows[y], columns[x]))
    across, along = (-right, down) if down >= 0 else (right, -down)  # a quarter turn, in the half that is there
    near = max(1, round(0.12 * math.hypot(down, right)))
    rows_near = [(across + step) % side for step in range(-near, near + 1)]
    crossing = power[rows_near, max(along - near, 0) : along + near + 1].max() / max(float(power[y, x]), 1e-12)
    return 1 / float(waves[y, x]) if power[y, x] > 0 else 0.0, float(crossing)


@cache
def _spread(shape: str) -> float:
    """The root-mean-square radius of a shape, in its radii; the mean of all for one that is unclear."""
    return radius_of(shape) if shape in SHAPES else sum(map(radius_of, SHAPES)) / len(SHAPES)
