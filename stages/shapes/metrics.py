"""Reading a `shapes` picture back into words: how many objects, and which colour, shape and background.

The rules know the world of `scenes.py` and nothing of any model: every threshold below follows from the
tables there and was checked on true renderings (`tests/stages/test_shapes_metrics.py`), never on a model's
output. An object is a connected patch of saturated paint. Shapes are told apart by overlap with the five
outlines, after scaling by second moments, so they are read alike at any size, aspect ratio and rotation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, Scene, distance

BASE_AREA = 128 * 128  # pixels of a training picture
# Pixels: averages about 12 of them, so that neither grain nor noise passes for paint.
BLUR = 1.0
# Half-way between the dullest paint (purple, 0.73) and the most vivid ground (night sky, 0.45).
SATURATION = 0.58
# The darkest paint has 0.40 (green in shade), a night sky 0.24; in darker pixels saturation is mostly noise.
VALUE = 0.27
# Of the training picture: 163 px. The smallest object drawn at aspect 1 has 1,500 px, at 3.2:1 still 480 px.
MIN_AREA = 0.01
# Pixels around paint that do not count as background: four times BLUR.
MARGIN = 4
# Overlap with the best outline. True objects reach 0.86, blurred and noisy ones too; two discs run together
# 0.72, half a disc 0.66, a cross 0.68.
MIN_FIT = 0.80

_GRID = 64  # samples a side of a normalised mask
_EXTENT = 2.2  # half its side, in root-mean-square radii; the furthest point, a triangle's corner, is at 2.0
# Degrees after which a shape looks the same again.
_PERIOD = {"disc": 0.0, "ring": 0.0, "square": 90.0, "triangle": 120.0, "star": 72.0}
_STEP = 3.0  # degrees between two templates

Array = NDArray[Any]


@dataclass(frozen=True)
class FoundObject:
    """One object. `shape` is `unclear` when no outline overlaps it well; `fit` is the best overlap (IoU)."""

    color: str
    shape: str
    area_px: int
    center: tuple[float, float]  # (y, x) pixels
    box: tuple[int, int, int, int]  # top, left, bottom, right pixels, half-open
    fit: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its objects, largest first, and its background."""

    objects: tuple[FoundObject, ...]
    background: str


@dataclass(frozen=True)
class Words:
    """What a caption asks for. The texture is not judged."""

    color: str
    shape: str
    background: str


@dataclass(frozen=True)
class Verdict:
    """A picture held against its words. With several objects, colour and shape are those of the largest."""

    count: int
    color_ok: bool
    shape_ok: bool
    background_ok: bool

    @property
    def right(self) -> bool:
        """Exactly one object, of the colour and shape and on the background that were asked for."""
        return self.count == 1 and self.color_ok and self.shape_ok and self.background_ok


def parse_caption(text: str) -> Words:
    """Return the words of a caption such as `a striped red disc on a meadow`; the texture may be there or not."""
    textures, colors, shapes, grounds = map("|".join, (TEXTURES, COLORS, SHAPES, BACKGROUNDS))
    pattern = rf"an? (?:(?:{textures}) )?({colors}) ({shapes}) on ({grounds})"
    found = re.fullmatch(pattern, " ".join(text.lower().rstrip(". ").split()))
    if found is None:
        raise ValueError(
            f"caption {text!r} is not 'a [{textures}] COLOUR SHAPE on BACKGROUND'"
            f" with colour {colors}, shape {shapes} and background {grounds}"
        )
    return Words(*found.groups())


def judge(image: Tensor, wanted: Scene | Words | str, *, base_area: int = BASE_AREA) -> Verdict:
    """Hold `image` (3, H, W) in [-1, 1] against a scene, words or a caption."""
    words = parse_caption(wanted) if isinstance(wanted, str) else wanted
    reading = read_picture(image, base_area=base_area)
    largest = reading.objects[0] if reading.objects else None
    return Verdict(
        count=len(reading.objects),
        color_ok=largest is not None and largest.color == words.color,
        shape_ok=largest is not None and largest.shape == words.shape,
        background_ok=reading.background == words.background,
    )


def read_picture(image: Tensor, *, base_area: int = BASE_AREA) -> Reading:
    """Read `image` (3, H, W) in [-1, 1], of any size."""
    return read_with_mask(image, base_area=base_area)[0]


def read_with_mask(image: Tensor, *, base_area: int = BASE_AREA) -> tuple[Reading, Array]:
    """Return what `read_picture` and `largest_mask` say of `image`, blurred and searched for paint once."""
    rgb = _smooth_rgb(image)
    paint = _paint(rgb)
    return Reading(tuple(_components(rgb, paint, base_area)), _background(rgb, paint)), _largest(paint)


def objects(image: Tensor, *, base_area: int = BASE_AREA) -> list[FoundObject]:
    """Return the objects of `image` (3, H, W) in [-1, 1], largest first.

    `base_area` is the area of a training picture in pixels; the size that counts as an object follows from it
    and not from the size of `image`, because duplicated objects appear at the training size.
    """
    rgb = _smooth_rgb(image)
    return _components(rgb, _paint(rgb), base_area)


def largest_mask(image: Tensor) -> Array:
    """Where the largest patch of paint is, (H, W) bool; nowhere if there is none. For `image` (3, H, W) in [-1, 1]."""
    return _largest(_paint(_smooth_rgb(image)))


def _largest(paint: Array) -> Array:
    labels, count = ndimage.label(paint)
    areas = np.bincount(labels.ravel())[1:]
    return np.asarray(labels == areas.argmax() + 1) if count else np.zeros(labels.shape, bool)


def _smooth_rgb(image: Tensor) -> Array:
    """Return (3, H, W) float32 in [0, 1], lightly blurred."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}, not (3, H, W)")
    rgb = ((image.detach().float().cpu() + 1) / 2).clamp(0, 1).numpy()
    if not np.isfinite(rgb).all():
        raise ValueError("image has values that are not finite")
    return np.asarray(ndimage.gaussian_filter(rgb, sigma=(0, BLUR, BLUR), mode="nearest"))


def _paint(rgb: Array) -> Array:
    """Return where there is object paint, (H, W) bool; specks and bridges under three pixels are opened away."""
    value = rgb.max(axis=0)
    saturation = (value - rgb.min(axis=0)) / np.maximum(value, 1e-6)
    mask = (saturation > SATURATION) & (value > VALUE)
    padded = np.pad(mask, 1, mode="edge")  # the picture's border is no edge of an object
    return np.asarray(ndimage.binary_opening(padded, structure=np.ones((3, 3), bool))[1:-1, 1:-1])


def _components(rgb: Array, paint: Array, base_area: int) -> list[FoundObject]:
    labels, _ = ndimage.label(paint)
    areas = np.bincount(labels.ravel())
    found = []
    for label, region in enumerate(ndimage.find_objects(labels), start=1):
        if areas[label] >= MIN_AREA * base_area:
            mask = labels[region] == label
            shape, fit = _match_shape(mask)
            rows, cols = region
            y, x = (axis.mean() for axis in np.nonzero(mask))
            found.append(
                FoundObject(
                    color=_nearest_color(rgb[:, rows, cols][:, mask]),
                    shape=shape,
                    area_px=int(areas[label]),
                    center=(float(rows.start + y), float(cols.start + x)),
                    box=(rows.start, cols.start, rows.stop, cols.stop),
                    fit=fit,
                )
            )
    return sorted(found, key=lambda item: (-item.area_px, item.center))


def _nearest_color(pixels: Array) -> str:
    """Return the paint nearest in hue to `pixels` (3, N). Hue is an angle, so mixing with a grey ground keeps it."""
    around = np.exp(2j * np.pi * np.arange(3) / 3)  # red, green, blue on the colour circle
    hue = (around @ pixels).sum()
    apart = {name: abs(np.angle(hue / (around @ np.array(paint)))) for name, paint in COLORS.items()}
    return min(apart, key=apart.__getitem__)


def _background(rgb: Array, paint: Array) -> str:
    """Return the ground nearest in mean colour to the pixels away from all paint (all pixels if none is)."""
    away = ~ndimage.binary_dilation(paint, structure=np.ones((3, 3), bool), iterations=MARGIN)
    mean = rgb[:, away].mean(axis=1) if away.any() else rgb.mean(axis=(1, 2))
    return min(BACKGROUNDS, key=lambda name: float(np.square(255 * mean - BACKGROUNDS[name]).sum()))


def _match_shape(mask: Array) -> tuple[str, float]:
    """Return the best name and its overlap (intersection over union) of a component `mask` (h, w), holes open."""
    y, x = np.nonzero(mask)
    cy, cx = y.mean(), x.mean()
    step = 2 * _EXTENT / _GRID * math.sqrt(y.var() + x.var())  # pixels a sample
    first = (np.array([cy, cx]) - step * (_GRID - 1) / 2).tolist()
    sampled = ndimage.affine_transform(
        mask.astype(np.float32), [step, step], first, (_GRID, _GRID), order=1, mode="constant"
    )
    normalised = (sampled > 0.5).ravel().astype(np.float32)
    names, outlines = _templates()
    common = outlines @ normalised
    overlap = common / (outlines.sum(axis=1) + normalised.sum() - common)
    best = int(overlap.argmax())
    fit = float(overlap[best])
    return (names[best] if fit >= MIN_FIT else "unclear"), fit


@cache
def _templates() -> tuple[tuple[str, ...], Array]:
    """Return names (T) and outlines (T, 64 * 64) of 0 and 1, about the centroid and in units of the RMS radius."""
    names: list[str] = []
    outlines: list[Array] = []
    axis = (torch.arange(_GRID) + 0.5) / _GRID * 2 * _EXTENT - _EXTENT
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for shape in SHAPES:
        (cy, cx), radius = _moments(shape)
        for turn in range(max(1, round(_PERIOD[shape] / _STEP))):
            c, s = math.cos(math.radians(turn * _STEP)), math.sin(math.radians(turn * _STEP))
            v, u = (c * y - s * x) * radius + cy, (s * y + c * x) * radius + cx
            names.append(shape)
            outlines.append((distance(shape, v, u) <= 0).flatten().numpy().astype(np.float32))
    return tuple(names), np.stack(outlines)


def radius_of(shape: str) -> float:
    """Return the root-mean-square radius of a shape of radius 1."""
    return _moments(shape)[1]


def _moments(shape: str) -> tuple[tuple[float, float], float]:
    """Return centroid (v, u) and root-mean-square radius of a shape in its own units, by counting on a fine grid."""
    axis = torch.linspace(-1.2, 1.2, 481)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = distance(shape, v, u) <= 0
    v, u = v[inside], u[inside]
    variance = v.var(correction=0) + u.var(correction=0)
    return (float(v.mean()), float(u.mean())), math.sqrt(float(variance))
