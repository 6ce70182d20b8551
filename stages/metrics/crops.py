"""Where FID_c and KID_c look: crops at full resolution, without resizing (FreeScale, arXiv 2412.09626, section 4).

The paper gives neither their number nor their size; ours are ten crops of the feature network's own input size, as in
any-resolution training (arXiv 2204.07156). A crop's place depends on (seed, picture, number) alone, so two methods are
cropped alike whatever the order and whichever picture is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from freescale.forward_process import generator


class Box(NamedTuple):
    """A crop in pixels, half-open: `[top, top + height)`, `[left, left + width)`."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Tensor) -> Tensor:
        """Return the crop of `pixels` (…, H, W)."""
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


def random_boxes(size: tuple[int, int], side: int, count: int, seed: int, picture: str) -> list[Box]:
    """Return `count` boxes of `side` pixels in a picture of `size` (height, width).

    A picture of just that size gives one box: copies would be counted as agreement. Raises `ValueError` for a smaller
    picture.
    """
    rooms = _rooms(size, side)
    if rooms == (0, 0):
        return [Box(0, 0, side, side)]
    boxes = []
    for index in range(count):
        g = generator(seed, "crop", picture, index)
        top, left = (int(torch.randint(0, room + 1, (1,), generator=g)) for room in rooms)
        boxes.append(Box(top, left, side, side))
    return boxes


def grid_boxes(size: tuple[int, int], side: int) -> list[Box]:
    """Return all whole boxes of `side` pixels side by side from the top left corner of a picture of `size`."""
    bottom, right = _rooms(size, side)
    return [Box(y, x, side, side) for y in range(0, bottom + 1, side) for x in range(0, right + 1, side)]


def _rooms(size: tuple[int, int], side: int) -> tuple[int, int]:
    height, width = size
    if side < 1 or min(height, width) < side:
        raise ValueError(f"crops of {side} pixels do not fit in a picture of {width}x{height}")
    return height - side, width - side
