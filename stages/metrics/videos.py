"""Metrics of videos by VBench's rules (arXiv 2311.17982), and what FVD feeds its network. No network is in here.

A video is its frames in order, each (3, H, W) uint8, read once. The optical flow is a plug: any callable from two
frames to the displacement of each pixel of the first, (2, H, W), x before y.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from stages.metrics.extractors import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from fractions import Fraction

    from torch import Tensor

    Flow = Callable[[Tensor, Tensor], Tensor]

SAMPLED_FPS = 8  # dynamic degree looks at about as many frames a second
TOP_SHARE = 0.05  # of the pixels, the fastest: a pair's score is their mean
THRESHOLD, THRESHOLD_SIDE = 6.0, 256  # pixels of motion at a shorter side of 256
CLIP_SIDE = 224
I3D_SIDE = 224


@dataclass(frozen=True)
class Dynamics:
    """How much a video moves: the score of each pair of kept frames in pixels, and what makes it dynamic."""

    scores: tuple[float, ...]
    threshold: float
    needed: int

    @property
    def is_dynamic(self) -> bool:
        """Whether enough pairs move by more than the threshold."""
        return sum(score > self.threshold for score in self.scores) >= self.needed


def dynamics(frames: Iterable[Tensor], fps: Fraction | float, flow: Flow) -> Dynamics:
    """VBench's dynamic degree of one video at its playback rate; of many, the share that is dynamic is reported.

    Rounding is to even, as published: 16 frames at 16 a second keep 8 and need 2 pairs of 7.
    """
    step = kept_step(fps)
    kept = (frame.float() for index, frame in enumerate(frames) if index % step == 0)
    begin = next(kept)
    height, width = begin.shape[-2:]
    scores = tuple(pair_score(flow(first, second)) for first, second in pairwise(chain([begin], kept)))
    return Dynamics(scores, THRESHOLD * min(height, width) / THRESHOLD_SIDE, needed_pairs(len(scores) + 1))


def kept_step(fps: Fraction | float) -> int:
    """Return n, where every n-th frame is looked at, for a playback rate in frames a second."""
    return max(1, round(fps / SAMPLED_FPS))


def needed_pairs(kept: int) -> int:
    """Return how many pairs of `kept` frames must move; none of fewer than three, which says nothing of a video."""
    return round(4 * kept / 16)


def pair_score(flow: Tensor) -> float:
    """Return the mean length, in pixels, of the largest 5 % of the vectors (2, H, W)."""
    lengths = torch.hypot(flow[0], flow[1]).flatten()
    return float(lengths.topk(max(1, int(len(lengths) * TOP_SHARE))).values.double().mean())


def flicker(frames: Iterable[Tensor]) -> float:
    """Return the mean absolute difference of consecutive frames, in levels of 255; 0 for a still or single frame.

    VBench's temporal flickering is (255 - this) / 255.
    """
    found = [(a.double() - b.double()).abs().mean() for a, b in pairwise(frames)]
    return float(torch.stack(found).mean()) if found else 0.0


def warp_error(frames: Iterable[Tensor], flow: Flow) -> float:
    """Return the mean difference, in levels of 255, of each frame and the next one, sampled where the flow leads.

    Pixels that leave the picture do not count. What moves as the flow says costs nothing, what boils does.
    """
    errors = []
    for first, second in pairwise(frame.float() for frame in frames):
        height, width = first.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        moved = flow(first, second)
        x, y = columns + moved[0], rows + moved[1]
        grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
        found = F.grid_sample(second[None], grid[None].float(), mode="bilinear", align_corners=True)[0]
        inside = (grid.abs() <= 1).all(dim=-1)
        if inside.any():
            errors.append((found - first).abs()[:, inside].double().mean())
    return float(torch.stack(errors).mean()) if errors else 0.0


def aesthetic_pixels(frame: Tensor) -> Tensor:
    """Return a frame as VBench's aesthetic quality reads it: (3, 224, 224), normalised for CLIP.

    The shorter side goes to 224 by bicubic interpolation without antialiasing, rounded and clipped to 8 bits; then the
    middle square.
    """
    height, width = frame.shape[-2:]
    scale = CLIP_SIDE / min(height, width)
    size = (max(CLIP_SIDE, int(height * scale)), max(CLIP_SIDE, int(width * scale)))
    sized = F.interpolate(frame[None].float(), size, mode="bicubic", align_corners=False)[0].round().clamp(0, 255)
    top, left = (round((side - CLIP_SIDE) / 2) for side in size)
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (sized[:, top : top + CLIP_SIDE, left : left + CLIP_SIDE] / 255 - mean) / std


def aesthetic_score(embeddings: Tensor, weight: Tensor, bias: Tensor) -> float:
    """LAION's linear head over CLIP ViT-L/14 embeddings (F, d) of the frames: `weight` (1, d), `bias` (1,); 0 to 1."""
    rows = F.normalize(embeddings.double(), dim=-1)
    return float((rows @ weight.double().T + bias.double()).mean() / 10)


def i3d_input(frames: Iterable[Tensor], resize: str = "bilinear") -> Tensor:
    """Return a video as FVD's I3D reads it: (3, F, 224, 224) in [-1, 1], squashed.

    `bilinear` has no antialiasing and is what published numbers used; `antialias` is what large frames need.
    """
    sized = [
        F.interpolate(
            frame[None].float(),
            (I3D_SIDE, I3D_SIDE),
            mode="bilinear",
            align_corners=False,
            antialias=resize == "antialias",
        )[0]
        for frame in frames
    ]
    return torch.stack(sized, dim=1) / 127.5 - 1
