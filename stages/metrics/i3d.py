"""I3D (arXiv 1705.07750, figure 3): Inception-v1 inflated over time, with the 400 classes of Kinetics.

Its logits are what published FVD compares. Padding is TensorFlow's `SAME`, worked out for each input; it is of zeros
before pools too, which after a ReLU is no other than of minus infinity. Module names are those of the weight file in
circulation (`i3d_pretrained_400.pt`), so that the file saved as safetensors loads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES, CLASSES = 16, 400
EPSILON = 1e-5  # of the batch norms, as in the code that is published with the file; the TensorFlow graph has 1e-3
# Channels that go in, and those of the towers: 1x1x1; 1x1x1 and 3x3x3; the same again; 1x1x1 behind the pool.
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # before these: window and stride
Steps = tuple[int, int, int]


def same(x: Tensor, kernel: Steps, stride: Steps) -> Tensor:
    """`x` (B, C, F, h, w) with zeros around it, so that a window gives ceil(size / stride); an odd one goes behind."""
    pads: list[int] = []
    for size, window, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // step) - 1) * step + window - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def max_pool(x: Tensor, kernel: Steps, stride: Steps) -> Tensor:
    """Maxima of values that are not negative."""
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, F / stride, h / stride, w / stride), rounded up."""
        return F.relu(self.bn(self.conv3d(same(x, self.kernel, self.stride))))


class Mixed(nn.Module):
    """Four towers over the same cells, put one after another."""

    def __init__(self, inputs: int, one: int, two: int, three: int, four: int, five: int, pooled: int) -> None:
        super().__init__()
        self.b0 = Unit(inputs, one, 1)
        self.b1a, self.b1b = Unit(inputs, two, 1), Unit(two, three, 3)
        self.b2a, self.b2b = Unit(inputs, four, 1), Unit(four, five, 3)
        self.b3b = Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, one + three + five + pooled, F, h, w)."""
        pooled = self.b3b(max_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled), 1)


class I3D(nn.Module):
    """Logits of videos of 16 frames at 224x224."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(64, 64, 1), Unit(64, 192, 3)
        for name, widths in MIXED.items():
            self.add_module(name, Mixed(*widths))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, CLASSES, 1)})

    def forward(self, videos: Tensor) -> Tensor:
        """Return (B, 400) for `videos` (B, 3, 16, 224, 224) in [-1, 1].

        Smaller videos go through too. The last map of 16 frames is (2, 7, 7), the window of the published mean.
        """
        x = max_pool(self.Conv3d_1a_7x7(videos), (1, 3, 3), (1, 2, 2))
        x = max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            x = self.get_submodule(name)(max_pool(x, *POOLS[name]) if name in POOLS else x)
        out: Tensor = self.logits["conv3d"](x.mean(dim=(-3, -2, -1), keepdim=True)).flatten(1)
        return out
