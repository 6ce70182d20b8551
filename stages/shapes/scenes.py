"""Procedural scenes with captions: one object of a colour, shape and texture on a background.

A scene is a handful of numbers, so it can be drawn at any size: `draw(scene, height, width)` gives the same
picture at every resolution, with finer grain where there are pixels to show it. Lengths are in scene units:
one unit is the geometric mean of the sides, so a scene keeps its look at any aspect ratio. Object colours are
saturated and backgrounds are muted (table below); `metrics.py` relies on that and on nothing else.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

COLORS: dict[str, tuple[int, int, int]] = {  # saturation at least 0.73
    "red": (216, 44, 44),
    "orange": (238, 128, 24),
    "yellow": (236, 208, 40),
    "green": (30, 172, 64),
    "blue": (44, 84, 218),
    "purple": (140, 52, 196),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {  # saturation at most 0.45
    "a meadow": (104, 140, 92),
    "a night sky": (34, 38, 62),
    "sand": (206, 186, 150),
    "the sea": (92, 138, 152),
    "a brick wall": (152, 112, 96),
    "snow": (226, 231, 237),
}
SHAPES = ("disc", "ring", "square", "triangle", "star")
TEXTURES = ("plain", "striped", "dotted")
PERIODS = {"striped": 0.5, "dotted": 0.55}  # radii of the object
SHADE = 0.6  # of an object's colour, in the dark half of a texture


@dataclass(frozen=True)
class Scene:
    """One object on one background. `center` and `radius` are in scene units from the picture's middle."""

    color: str
    shape: str
    texture: str
    background: str
    center: tuple[float, float]
    radius: float
    rotation: float
    seed: int

    @property
    def caption(self) -> str:
        """The words for this scene, for example `a striped red disc on a meadow`."""
        texture = "" if self.texture == "plain" else f"{self.texture} "
        words = f"{texture}{self.color} {self.shape} on {self.background}"
        return ("an " if words[0] in "aeiou" else "a ") + words


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator of its own for each (seed, purpose)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sample_scene(seed: int, aspect: float = 1.0) -> Scene:
    """Draw a scene for pictures of `aspect` (width over height); the object lies wholly inside."""
    u = torch.rand(8, generator=stream(seed, "scene"), dtype=torch.float64).tolist()
    pick = [int(v * n) for v, n in zip(u, (len(COLORS), len(SHAPES), len(TEXTURES), len(BACKGROUNDS)), strict=False)]
    half_h, half_w = 0.5 / math.sqrt(aspect), 0.5 * math.sqrt(aspect)
    radius = (0.5 + 0.32 * u[4]) * min(half_h, half_w)
    room_h, room_w = half_h - 1.08 * radius, half_w - 1.08 * radius
    return Scene(
        color=list(COLORS)[pick[0]],
        shape=SHAPES[pick[1]],
        texture=TEXTURES[pick[2]],
        background=list(BACKGROUNDS)[pick[3]],
        center=((2 * u[5] - 1) * room_h, (2 * u[6] - 1) * room_w),
        radius=radius,
        rotation=(u[7] - 0.5) * 0.5,
        seed=seed,
    )


def draw(scene: Scene, height: int, width: int) -> Tensor:
    """Render to (3, height, width) in [-1, 1]."""
    return draw_objects(scene, (scene,), height, width)


def draw_objects(
    ground: Scene, objects: Sequence[Scene], height: int, width: int, texture_scale: float = 1.0
) -> Tensor:
    """Render any number of scenes' objects, later ones on top, on `ground`'s background: (3, H, W) in [-1, 1].

    Stripes and dots are `texture_scale` times as large as they should be, and as far apart.
    """
    unit = math.sqrt(height * width)
    y = ((torch.arange(height) + 0.5 - height / 2) / unit)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5 - width / 2) / unit)[None, :].expand(height, width)
    picture = _background(ground, y, x, unit)
    for scene in objects:
        picture = _painted(picture, scene, y, x, unit, texture_scale)
    return picture * 2 - 1


def _painted(picture: Tensor, scene: Scene, y: Tensor, x: Tensor, unit: float, texture_scale: float) -> Tensor:
    """`picture` (3, H, W) in [0, 1] with the object of `scene` on it."""
    dy, dx = y - scene.center[0], x - scene.center[1]
    c, s = math.cos(scene.rotation), math.sin(scene.rotation)
    v, u = (c * dy - s * dx) / scene.radius, (s * dy + c * dx) / scene.radius
    edge = unit * scene.radius  # pixels to one object radius
    cover = (0.5 - distance(scene.shape, v, u) * edge).clamp(0, 1)
    dark = _texture(scene.texture, v / texture_scale, u / texture_scale, edge * texture_scale)
    color = torch.tensor(COLORS[scene.color]) / 255
    paint = color[:, None, None] * (1 - (1 - SHADE) * dark)
    return picture + (paint - picture) * cover


def distance(shape: str, v: Tensor, u: Tensor) -> Tensor:
    """Return the signed distance to the outline of a shape of radius 1 (negative inside), y down."""
    rho = torch.hypot(v, u)
    if shape == "disc":
        return rho - 0.95
    if shape == "ring":
        return (rho - 0.7).abs() - 0.3
    if shape == "square":
        return torch.maximum(v.abs(), u.abs()) - 0.8
    if shape == "triangle":
        w, half, tall = v - 0.15, 0.5, math.sqrt(3) / 2
        return torch.maximum(w, tall * u.abs() - half * w) - 0.55
    if shape == "star":
        sector = 2 * math.pi / 5
        angle = torch.remainder(torch.atan2(u, -v) + sector / 2, sector) - sector / 2
        along, across = rho * torch.cos(angle), rho * torch.sin(angle).abs()
        notch = (0.5 * math.cos(sector / 2), 0.5 * math.sin(sector / 2))
        normal = (notch[1], 1.0 - notch[0])
        return ((along - 1.0) * normal[0] + across * normal[1]) / math.hypot(*normal)
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")


def _texture(texture: str, v: Tensor, u: Tensor, edge: float) -> Tensor:
    """Return how dark the paint is, in [0, 1], antialiased over one pixel."""
    if texture == "plain":
        return torch.zeros_like(v)
    if texture == "striped":
        period = PERIODS[texture]
        wave = (torch.remainder(v / period, 1.0) - 0.5).abs() - 0.25
        return (0.5 + wave * period * edge).clamp(0, 1)
    period = PERIODS[texture]
    cell = torch.hypot(torch.remainder(v, period) - period / 2, torch.remainder(u, period) - period / 2)
    return (0.5 - (cell - 0.15) * edge).clamp(0, 1)


def _background(scene: Scene, y: Tensor, x: Tensor, unit: float) -> Tensor:
    base = (torch.tensor(BACKGROUNDS[scene.background]) / 255)[:, None, None]
    grain = _noise(scene.seed, y, x, unit, first=3.0)
    if scene.background == "a meadow":
        light = 1 + 0.16 * grain
    elif scene.background == "sand":
        light = 1 + 0.05 * torch.sin(40 * (y + 0.05 * grain + 0.2 * x)) + 0.04 * grain
    elif scene.background == "the sea":
        light = 1 + 0.10 * torch.sin(34 * (y + 0.03 * grain)) + 0.05 * grain
    elif scene.background == "a brick wall":
        light = 1 + 0.06 * grain - 0.18 * _mortar(y, x, unit)
    elif scene.background == "a night sky":
        light = 1 + 0.15 * grain + 3.2 * _stars(scene.seed, y, x, unit)
    else:
        light = 1 + 0.035 * grain
    return (base * light).clamp(0, 1)


def _noise(seed: int, y: Tensor, x: Tensor, unit: float, first: float) -> Tensor:
    """Return value noise in about [-1, 1]: octaves from `first` cells a unit down to cells of two pixels."""
    total, octave = torch.zeros_like(y), 0
    while first * 2**octave <= unit / 2:
        cells = first * 2**octave
        n = 2 * math.ceil(cells * 1.5) + 1  # 3 units a side: aspects up to 8:1
        lattice = torch.rand((1, 1, n, n), generator=stream(seed, "noise", octave)) * 2 - 1
        where = torch.stack((x, y), -1)[None] * (2 * cells / (n - 1))
        total += F.grid_sample(lattice, where.float(), mode="bilinear", align_corners=True)[0, 0] * 0.55**octave
        octave += 1
    return total


def _mortar(y: Tensor, x: Tensor, unit: float) -> Tensor:
    tall, wide, joint = 0.125, 0.25, 0.012
    row = torch.floor(y / tall)
    shifted = x + 0.5 * wide * torch.remainder(row, 2)
    gap = torch.minimum(
        (torch.remainder(y / tall, 1) - 0.5).abs().neg().add(0.5) * tall,
        (torch.remainder(shifted / wide, 1) - 0.5).abs().neg().add(0.5) * wide,
    )
    return (0.5 + (joint - gap) * unit).clamp(0, 1)


def _stars(seed: int, y: Tensor, x: Tensor, unit: float) -> Tensor:
    total = torch.zeros_like(y)
    for sy, sx, size in torch.rand((40, 3), generator=stream(seed, "stars"), dtype=torch.float64).tolist():
        radius = 0.004 + 0.006 * size
        away = torch.hypot(y - (sy - 0.5) * 1.8, x - (sx - 0.5) * 1.8)
        total = torch.maximum(total, (0.5 - (away - radius) * unit).clamp(0, 1))
    return total
