"""RAFT (arXiv 2003.12039), the large model: optical flow by looking up correlations of all pairs, refined 20 times.

Module names are those of the authors' files without the `module.` of data parallelism. `correlation.py` has the
look-up; the flow is in pixels, x before y, and says where each pixel of the first frame is in the second.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.metrics.correlation import LEVELS, RADIUS, Correlation

ITERATIONS = 20
CELL = 8  # pixels a side of a cell that features and flow are of
FEATURES, HIDDEN, CONTEXT = 256, 128, 128
SMALLEST = CELL * 2 ** (LEVELS - 1)  # pixels a side, so that the coarsest level has a cell
MASK_SCALE = 0.25  # of the upsampling weights, from the paper's code


def norm(channels: int, batch: bool) -> nn.Module:
    """Batch norm for the context, instance norm without weights for the features."""
    return nn.BatchNorm2d(channels) if batch else nn.InstanceNorm2d(channels)


class Residual(nn.Module):
    """Two 3x3 convolutions and a way around them. `norm3` has two names, as in the files."""

    def __init__(self, inputs: int, outputs: int, batch: bool, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1, self.norm2 = norm(outputs, batch), norm(outputs, batch)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.norm3 = norm(outputs, batch)
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu((x if self.downsample is None else self.downsample(x)) + y)


class Encoder(nn.Module):
    """Pixels in [-1, 1] -> 256 numbers a cell of 8x8."""

    def __init__(self, batch: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, 2, 3), norm(64, batch)
        self.layer1 = nn.Sequential(Residual(64, 64, batch), Residual(64, 64, batch))
        self.layer2 = nn.Sequential(Residual(64, 96, batch, 2), Residual(96, 96, batch))
        self.layer3 = nn.Sequential(Residual(96, 128, batch, 2), Residual(128, 128, batch))
        self.conv2 = nn.Conv2d(128, FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 256, H / 8, W / 8)."""
        out: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(F.relu(self.norm1(self.conv1(x)))))))
        return out


class MotionEncoder(nn.Module):
    """Looked-up correlations and the flow -> 126 features, and the flow itself behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1, self.convf2 = nn.Conv2d(2, 128, 7, padding=3), nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, 128 - 2, 3, padding=1)

    def forward(self, flow: Tensor, found: Tensor) -> Tensor:
        """Return (B, 128, h, w)."""
        found = F.relu(self.convc2(F.relu(self.convc1(found))))
        moved = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat((F.relu(self.conv(torch.cat((found, moved), 1))), flow), 1)


class SeparableGRU(nn.Module):
    """A gated update along rows, then one along columns."""

    def __init__(self) -> None:
        super().__init__()
        inputs = HIDDEN + CONTEXT + 128
        for number, kernel in ((1, (1, 5)), (2, (5, 1))):
            for gate in "zrq":
                conv = nn.Conv2d(inputs, HIDDEN, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
                self.add_module(f"conv{gate}{number}", conv)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        """Return the next hidden state (B, 128, h, w)."""
        for number in (1, 2):
            update, reset, new = (self.get_submodule(f"conv{gate}{number}") for gate in "zrq")
            both = torch.cat((hidden, x), 1)
            z, r = torch.sigmoid(update(both)), torch.sigmoid(reset(both))
            hidden = (1 - z) * hidden + z * torch.tanh(new(torch.cat((r * hidden, x), 1)))
        return hidden


class FlowHead(nn.Module):
    """Hidden state -> a change of the flow, in cells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, 2, h, w)."""
        out: Tensor = self.conv2(F.relu(self.conv1(hidden)))
        return out


class Update(nn.Module):
    """One refinement; `mask` gives the weights that the last flow is upsampled with."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru, self.flow_head = MotionEncoder(), SeparableGRU(), FlowHead()
        last = nn.Conv2d(256, 9 * CELL**2, 1)
        self.mask = nn.Sequential(nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.ReLU(), last)

    def forward(self, hidden: Tensor, context: Tensor, found: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next hidden state and the change of the flow."""
        hidden = self.gru(hidden, torch.cat((context, self.encoder(flow, found)), 1))
        return hidden, self.flow_head(hidden)


def upsampled(flow: Tensor, mask: Tensor) -> Tensor:
    """Return (2, 8 h, 8 w) in pixels of a flow (2, h, w) in cells (section 3.3).

    Every pixel is a convex combination of the 3x3 cells around its own; `mask` (9 * 8 * 8, h, w) holds the logits of
    the weights, by neighbour in reading order, then by the pixel's row and column in the cell. Outside there is 0.
    """
    height, width = flow.shape[-2:]
    weights = mask.view(9, CELL, CELL, height, width).softmax(0)
    around = F.unfold(CELL * flow[None], 3, padding=1).view(2, 9, height, width)
    fine = torch.einsum("nabhw,cnhw->chawb", weights, around)
    return fine.reshape(2, CELL * height, CELL * width)


class Raft(nn.Module):
    """The flow of a pair of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet, self.cnet, self.update_block = Encoder(batch=False), Encoder(batch=True), Update()

    def forward(self, first: Tensor, second: Tensor, iterations: int = ITERATIONS) -> Tensor:
        """Return (2, H, W) in pixels for frames (3, H, W) in 0…255, at least 64 a side.

        A size that is no multiple of 8 is filled up on both sides with copies of the edge, and the flow is cut back.
        """
        height, width = first.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"frames of {width}x{height} pixels are too small; {SMALLEST} a side or more work")
        top, left = -height % CELL // 2, -width % CELL // 2
        pads = (left, -width % CELL - left, top, -height % CELL - top)
        pair = F.pad(torch.stack((first, second)) / 127.5 - 1, pads, mode="replicate")
        flow = self.flow(pair, iterations)
        return flow[:, top : top + height, left : left + width]

    def flow(self, pair: Tensor, iterations: int) -> Tensor:
        """Return (2, H, W) for `pair` (2, 3, H, W) in [-1, 1], sides multiples of 8."""
        correlation = Correlation(*self.fnet(pair))
        hidden, context = self.cnet(pair[:1]).split((HIDDEN, CONTEXT), dim=1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        flow = torch.zeros_like(hidden[0, :2])
        for _ in range(iterations):
            hidden, change = self.update_block(hidden, context, correlation(flow)[None], flow[None])
            flow = flow + change[0]
        return upsampled(flow, MASK_SCALE * self.update_block.mask(hidden)[0])
