"""The feature network of the `shapes` world: 64 features that know colour, shape, texture, ground and object count.

Inception's features mean little on six paints and five outlines, so the embedded model is measured with a network
trained on true scenes with none to several objects (`benchmarks/shapes/train_extractor.py`). A picture is read at
128x128. The features are the layer before the classifiers, as Inception's pool is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES

INPUT = 128  # pixels a side
WIDTHS = (24, 48, 80, 112, 112)  # channels at 64, 32, 16, 8 and 4 cells a side
FEATURES = 64
MAX_COUNT = 5  # objects; more are called five
HEADS = {
    "color": len(COLORS),
    "shape": len(SHAPES),
    "texture": len(TEXTURES),
    "background": len(BACKGROUNDS),
    "count": MAX_COUNT + 1,
}
WEIGHTS = Path(__file__).parents[1] / "shapes" / "extractor" / "extractor.safetensors"


class ShapesNet(nn.Module):
    """Five strided convolutions, mean and maximum over the cells, one hidden layer, and a classifier for each word."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(inputs, WIDTHS, strict=True))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in WIDTHS)
        self.hidden = nn.Linear(2 * WIDTHS[-1], FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, classes) for name, classes in HEADS.items()})

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 64), not negative, mean square 1 over true scenes, for `images` (B, 3, 128, 128) in [-1, 1]."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        out: Tensor = F.relu(self.hidden(torch.cat((x.mean(dim=(-2, -1)), x.amax(dim=(-2, -1))), dim=-1)))
        return out

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes) of each head for `images` (B, 3, 128, 128) in [-1, 1]."""
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes) of each head for features (B, 64)."""
        return {name: head(features) for name, head in self.heads.items()}


def object_logits(logits: dict[str, Tensor]) -> Tensor:
    """(B, 30) logits of the pairs of colour and shape, taken as independent: the classes of the inception score."""
    color, shape = (torch.log_softmax(logits[name], dim=-1) for name in ("color", "shape"))
    return (color[:, :, None] + shape[:, None, :]).flatten(1)
