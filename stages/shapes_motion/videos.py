"""Moving scenes with captions: an object of `stages/shapes/scenes.py` that moves, grows or spins on a still ground.

A video is a scene and a motion, so the truth is known at every size and at every frame: `frame_scene(video, index)` is
an ordinary scene. The number of frames is free; `motion_fps` says how densely they sample the motion, so that with a
larger number less happens from one frame to the next, as VideoCrafter2 has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.shapes.scenes import BACKGROUNDS, COLORS, Scene, draw, stream

MOTIONS = ("moving left", "moving right", "moving up", "growing", "spinning")
SHAPES = ("disc", "square", "triangle")  # no star: at the training size the VAE makes discs of three in four
TURNING = ("square", "triangle")  # a disc that spins looks still
RATES = (8, 16)  # motion_fps of training videos
FRAMES = 8
SPAN = FRAMES - 1  # steps of the reference rate, RATES[0], that make the whole motion
TURN = math.radians(12.0)  # of a spin, each step at the reference rate; a square looks the same again after 90
GROWTH = 1.6  # of the radius, over the whole motion


@dataclass(frozen=True)
class Video:
    """One object in its first frame, what it does, and how far it gets in the whole motion (scene units)."""

    scene: Scene
    motion: str
    reach: float  # of a movement
    motion_fps: float

    @property
    def caption(self) -> str:
        """The words for this video, for example `a blue square moving left over sand`."""
        words = f"{self.scene.color} {self.scene.shape} {self.motion} over {self.scene.background}"
        return ("an " if words[0] in "aeiou" else "a ") + words


def sample_video(seed: int, aspect: float = 1.6, motion: str | None = None) -> Video:
    """Draw a video for frames of `aspect` (width over height); the object lies wholly inside for `FRAMES` frames.

    With `motion`, the video of this seed that has it: the same colours and size, and the shape where it can be seen to.
    """
    u = torch.rand(10, generator=stream(seed, "clip"), dtype=torch.float64).tolist()
    motion = motion or MOTIONS[int(u[0] * len(MOTIONS))]
    shapes = TURNING if motion == "spinning" else SHAPES
    half_h, half_w = 0.5 / math.sqrt(aspect), 0.5 * math.sqrt(aspect)
    last = (0.48 + 0.24 * u[1]) * min(half_h, half_w)
    room = (half_h - 1.08 * last, half_w - 1.08 * last)
    first = last / GROWTH if motion == "growing" else last
    y, x = (2 * u[2] - 1) * room[0], (2 * u[3] - 1) * room[1]
    along = room[0] if motion == "moving up" else room[1]
    reach = (1.1 + 0.5 * u[4]) * along
    slack = (2 * along - reach) * u[5]
    if motion in ("moving left", "moving up"):
        y, x = (along - slack, x) if motion == "moving up" else (y, along - slack)
    elif motion == "moving right":
        x = -along + slack
    scene = Scene(
        color=list(COLORS)[int(u[6] * len(COLORS))],
        shape=shapes[int(u[7] * len(shapes))],
        texture="plain",
        background=list(BACKGROUNDS)[int(u[8] * len(BACKGROUNDS))],
        center=(y, x),
        radius=first,
        rotation=(u[9] - 0.5) * 0.5,
        seed=seed,
    )
    rate = RATES[int(torch.randint(0, len(RATES), (1,), generator=stream(seed, "rate")))]
    return Video(scene, motion, reach, rate)


def frame_scene(video: Video, index: int) -> Scene:
    """The scene of frame `index`. Beyond `FRAMES` frames of the reference rate an object may leave the picture."""
    steps = index * RATES[0] / video.motion_fps
    scene, (y, x), way = video.scene, video.scene.center, video.reach * steps / SPAN
    if video.motion == "moving left":
        return replace(scene, center=(y, x - way))
    if video.motion == "moving right":
        return replace(scene, center=(y, x + way))
    if video.motion == "moving up":
        return replace(scene, center=(y - way, x))
    if video.motion == "growing":
        return replace(scene, radius=scene.radius * GROWTH ** (steps / SPAN))
    return replace(scene, rotation=scene.rotation + TURN * steps)


def draw_video(video: Video, frames: int, height: int, width: int) -> Tensor:
    """Render to (3, frames, height, width) in [-1, 1]."""
    return torch.stack([draw(frame_scene(video, index), height, width) for index in range(frames)], dim=1)
