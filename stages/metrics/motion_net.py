"""The feature network of the `shapes-motion` world: 64 features of a video that know motion, colour, shape and ground.

Fréchet distance over these features is for `shapes-motion` what FVD over I3D's is for filmed videos (arXiv 1812.01717).
Trained on true videos alone (`benchmarks/shapes_motion/train_extractor.py`). Eight frames are read, evenly taken, each
squashed to 64x64 with antialiasing; the features are the layer before the classifiers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.shapes.scenes import BACKGROUNDS, COLORS
from stages.shapes_motion.videos import MOTIONS, SHAPES

INPUT, FRAMES, FEATURES = 64, 8, 64
WIDTHS = (16, 32, 64, 96)  # channels at 32, 16, 8 and 4 cells a side; 8, 8, 4 and 2 in time
STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
HEADS = {"motion": len(MOTIONS), "color": len(COLORS), "shape": len(SHAPES), "background": len(BACKGROUNDS)}
WEIGHTS = Path(__file__).parents[1] / "shapes_motion" / "extractor" / "extractor.safetensors"


class MotionNet(nn.Module):
    """Four strided convolutions over time and space, mean and maximum, one hidden layer, a classifier for each word."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride, 1) for a, b, stride in zip(inputs, WIDTHS, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in WIDTHS)
        self.hidden = nn.Linear(2 * WIDTHS[-1], FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, classes) for name, classes in HEADS.items()})

    def features(self, videos: Tensor) -> Tensor:
        """Return (B, 64), not negative, mean square 1 over true videos, for `videos` (B, 3, 8, 64, 64) in [-1, 1]."""
        x = videos
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        pooled = torch.cat((x.mean(dim=(-3, -2, -1)), x.amax(dim=(-3, -2, -1))), dim=-1)
        out: Tensor = F.relu(self.hidden(pooled))
        return out

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes) of each head for `videos` (B, 3, 8, 64, 64) in [-1, 1]."""
        features = self.features(videos)
        return {name: head(features) for name, head in self.heads.items()}


def frame_numbers(frames: int) -> list[int]:
    """Return which frames of a video are read: `FRAMES` of them, from the first to the last, evenly."""
    return [round(index * (frames - 1) / (FRAMES - 1)) for index in range(FRAMES)]


def frame_input(frame: Tensor) -> Tensor:
    """Return a frame (3, H, W) in [-1, 1] as the network reads it: (3, 64, 64)."""
    if tuple(frame.shape[-2:]) == (INPUT, INPUT):
        return frame
    return F.interpolate(frame[None], (INPUT, INPUT), mode="bicubic", antialias=True)[0].clamp(-1, 1)
