"""The one resize of the metrics, named `clean`: bicubic, antialiased, no rounding, clipped to 0…255.

It is the rule of clean-fid (arXiv 2104.11222, section 3): what a network sees of a 4096² picture at 299² is mostly
decided by the resize, and without antialiasing it is wrong by 13 levels of 255 on average. A picture of another aspect
is squashed, on both sides of a comparison alike, as in the published numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

NAME = "clean"


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `pixels` (B, 3, H, W) in 0…255, any dtype, at `size` (height, width): float32 in 0…255.

    A picture that has the size already comes back with its own values.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}, not (B, 3, H, W)")
    values = pixels.float()
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
