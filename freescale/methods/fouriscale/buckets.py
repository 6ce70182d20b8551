"""The sizes that SDXL was trained at (arXiv:2307.01952, appendix I), and which of them a target grows from.

FouriScale dilates by how many base sizes cover the target, so its base decides much. For another training size all
buckets are scaled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from freescale.cascade import Size

BucketRule = Literal["nearest", "released"]

_ONE_WAY: tuple[Size, ...] = ((1024, 1024), (704, 1344))
_BOTH_WAYS: tuple[Size, ...] = (
    *((960, 1024), (960, 1088), (896, 1088), (896, 1152), (832, 1152), (832, 1216), (768, 1280), (768, 1344)),
    *((704, 1408), (704, 1472), (640, 1536), (640, 1600), (576, 1664), (576, 1728), (576, 1792)),
    *((512, 1856), (512, 1920), (512, 1984), (512, 2048)),
)
BUCKETS: tuple[Size, ...] = tuple(
    sorted((*_ONE_WAY, *_BOTH_WAYS, *((w, h) for h, w in _BOTH_WAYS)), key=lambda size: size[0] / size[1])
)
"""(height, width), by rising height / width."""


SIDE_STEP = 64
"""Pixels. Sides of training squares, and of the buckets, are multiples of it whatever the VAE's factor is."""


def training_side(base_size: Size) -> int:
    """Return the side (pixels) of the square the model was trained at: the base size has its area, but for rounding."""
    return max(1, round(math.sqrt(base_size[0] * base_size[1]) / SIDE_STEP)) * SIDE_STEP


def bucket_for(size: Size, base_size: Size, rule: BucketRule = "nearest") -> Size:
    """Return the bucket of a target in pixels (height, width); a target no larger than its base is its own.

    `nearest` takes the nearest aspect, of equal ones the one that leaves the least to pad. `released` takes the
    least padding of those whose sides the target exceeds by the same whole number, so 2560 x 2560 gets 896 x 1088;
    a long target has none then, which raises.
    """
    if size[0] <= base_size[0] and size[1] <= base_size[1]:
        return size
    unit = training_side(base_size) / 1024
    buckets = [(round(h * unit), round(w * unit)) for h, w in BUCKETS]
    if rule == "nearest":
        return min(buckets, key=lambda bucket: (round(_bend(size, bucket), 9), _padding(size, bucket)))
    even = [b for b in buckets if len(set(_times(size, b))) == 1]
    if not even:
        raise ValueError(
            f"bucket_rule is 'released' at {size[1]}x{size[0]}, allowed: sizes up to four times as long as wide; "
            "'nearest' takes this one"
        )
    return min(even, key=lambda bucket: _padding(size, bucket))


def whole_scale(size: Size, base_size: Size) -> int:
    """Return how many base sizes cover the target on its longer way: the larger of the scales, rounded up."""
    return max(_times(size, base_size))


def _times(size: Size, bucket: Size) -> tuple[int, int]:
    return -(-size[0] // bucket[0]), -(-size[1] // bucket[1])


def _bend(size: Size, bucket: Size) -> float:
    return abs(math.log(size[0] * bucket[1] / (size[1] * bucket[0])))


def _padding(size: Size, bucket: Size) -> int:
    return sum(n * side - wanted for n, side, wanted in zip(_times(size, bucket), bucket, size, strict=True))
