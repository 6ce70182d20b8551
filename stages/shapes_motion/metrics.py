"""Reading a video of `shapes-motion` back into words: its object in every frame, and what that does over time.

As in `stages/shapes/metrics.py`, the rules follow from the moving scenes alone and were checked on true renderings,
never on a model's output. Colour, shape, ground and number are read frame by frame; the motion from the track of the
largest object: where its centre goes, how its area grows, how its outline turns.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from stages.shapes.metrics import MARGIN, Array, Reading, Words, read_with_mask
from stages.shapes.scenes import BACKGROUNDS, COLORS
from stages.shapes_motion.videos import MOTIONS, SHAPES, Video

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

BASE_AREA = 80 * 128  # pixels of a training frame
# Logarithm of the last area over the first: half of what the slowest true video has (1.6 a side, half the way).
GROWN = 0.23
# Scene units from first to last centre. The slowest true movement makes 0.048, a still object none.
MOVED = 0.02
# Degrees from first to last frame, half of the slowest true spin (six times seven).
TURNED = 21.0
FOLD = {"square": 4, "triangle": 3, "star": 5}  # turns after which an outline looks the same


@dataclass(frozen=True)
class Track:
    """What the largest object does from the first frame to the last."""

    shift: tuple[float, float]  # (down, right), scene units
    growth: float  # log of area over area
    turn: float  # degrees, clockwise on the screen


@dataclass(frozen=True)
class VideoReading:
    """What a video shows: each frame, the motion, and how much of a still ground flickers (8-bit levels)."""

    frames: tuple[Reading, ...]
    track: Track
    flicker: float

    @property
    def motion(self) -> str:
        """One of `MOTIONS`, or another word for what is none of them."""
        down, right = self.track.shift
        if abs(self.track.growth) > GROWN:
            return "growing" if self.track.growth > 0 else "shrinking"
        if abs(self.track.turn) > TURNED:  # before movements: a triangle does not turn about its centroid
            return "spinning"
        if max(abs(down), abs(right)) > MOVED:
            across = abs(right) >= abs(down)
            return f"moving {('right' if right > 0 else 'left') if across else ('down' if down > 0 else 'up')}"
        return "still"


@dataclass(frozen=True)
class VideoVerdict:
    """A video held against its words: shares of the frames, and the motion."""

    objects: float  # a frame, on average
    one_object: float
    color_ok: float
    shape_ok: float
    background_ok: float
    motion_ok: bool
    flicker: float

    @property
    def right(self) -> bool:
        """Every frame shows just the object asked for on its ground, and the motion is kept."""
        return self.motion_ok and min(self.one_object, self.color_ok, self.shape_ok, self.background_ok) == 1.0


def parse_video_caption(text: str) -> tuple[Words, str]:
    """Return the words of `a blue square moving left over sand`. Raises `ValueError` for another caption."""
    colors, shapes, motions, grounds = map("|".join, (COLORS, SHAPES, MOTIONS, BACKGROUNDS))
    found = re.fullmatch(rf"an? ({colors}) ({shapes}) ({motions}) over ({grounds})", " ".join(text.lower().split()))
    if found is None:
        raise ValueError(
            f"caption {text!r} is not 'a COLOUR SHAPE MOTION over BACKGROUND' with colour {colors}, shape {shapes}, "
            f"motion {motions} and background {grounds}"
        )
    color, shape, motion, ground = found.groups()
    return Words(color, shape, ground), motion


def judge_video(frames: Iterable[Tensor], wanted: Video | str, *, base_area: int = BASE_AREA) -> VideoVerdict:
    """Hold frames, each (3, H, W) in [-1, 1], against a video or its caption."""
    words, motion = parse_video_caption(wanted if isinstance(wanted, str) else wanted.caption)
    reading = read_video(frames, base_area=base_area)
    count = len(reading.frames)
    largest = [frame.objects[0] if frame.objects else None for frame in reading.frames]
    return VideoVerdict(
        objects=sum(len(frame.objects) for frame in reading.frames) / count,
        one_object=sum(len(frame.objects) == 1 for frame in reading.frames) / count,
        color_ok=sum(found is not None and found.color == words.color for found in largest) / count,
        shape_ok=sum(found is not None and found.shape == words.shape for found in largest) / count,
        background_ok=sum(frame.background == words.background for frame in reading.frames) / count,
        motion_ok=reading.motion == motion,
        flicker=reading.flicker,
    )


def read_video(frames: Iterable[Tensor], *, base_area: int = BASE_AREA) -> VideoReading:
    """Read a video frame by frame; two frames are held at a time. Raises `ValueError` for fewer than two."""
    readings: list[Reading] = []
    places: list[tuple[float, float, float]] = []  # of frames with an object: down, right, area
    directions: list[dict[str, complex]] = []
    changes: list[float] = []
    before: tuple[Array, Array] | None = None
    for image in frames:
        (reading, mask), levels = read_with_mask(image, base_area=base_area), _levels(image)
        readings.append(reading)
        if mask.any():
            places.append(_place(mask))
            directions.append(_directions(mask))
        if before is not None:
            changes.append(_change(before, (levels, mask)))
        before = levels, mask
    if len(readings) < 2:
        raise ValueError(f"a video has {len(readings)} frames, allowed: 2 or more")
    read = Counter(reading.objects[0].shape for reading in readings if reading.objects)
    shape = read.most_common(1)[0][0] if read else ""
    return VideoReading(tuple(readings), _track(places, directions, shape), float(np.mean(changes)))


def _levels(image: Tensor) -> Array:
    return ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).numpy()


def _change(before: tuple[Array, Array], now: tuple[Array, Array]) -> float:
    """Return the mean change of the pixels that are ground in both frames, 8-bit levels."""
    painted = ndimage.binary_dilation(before[1] | now[1], structure=np.ones((3, 3), bool), iterations=MARGIN)
    ground = ~np.asarray(painted)
    return float(np.abs(now[0] - before[0])[:, ground].mean()) if ground.any() else 0.0


def _place(mask: Array) -> tuple[float, float, float]:
    """Return centre (down, right) in scene units from the corner, and area in square units."""
    unit = math.sqrt(mask.size)
    y, x = (axis.mean() for axis in np.nonzero(mask))
    return float(y) / unit, float(x) / unit, float(mask.sum()) / mask.size


def _directions(mask: Array) -> dict[str, complex]:
    """For each shape that can be seen to turn, n times the angle of an outline of n-fold symmetry, as e^(i n angle).

    The n-th moment of the points about their centre, sum (x + i y)^n, turns n times as fast as the outline.
    """
    y, x = np.nonzero(mask)
    points = (x - x.mean()) + 1j * (y - y.mean())
    moments = {shape: complex((points**fold).sum()) for shape, fold in FOLD.items()}
    return {shape: moment / abs(moment) if abs(moment) > 0 else 0j for shape, moment in moments.items()}


def _track(places: list[tuple[float, float, float]], directions: list[dict[str, complex]], shape: str) -> Track:
    """The track of an object of `shape`: first frame against last, and the turns from frame to frame added up."""
    if len(places) < 2:
        return Track((0.0, 0.0), 0.0, 0.0)
    (top, left, small), (bottom, right, large) = places[0], places[-1]
    turn = 0.0
    if shape in FOLD:
        steps = (b[shape] * a[shape].conjugate() for a, b in pairwise(directions))
        turn = math.degrees(sum(math.atan2(step.imag, step.real) for step in steps)) / FOLD[shape]
    return Track((bottom - top, right - left), math.log(large / small), turn)
