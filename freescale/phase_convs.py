"""Dilated convolutions without dilation: a dense kernel on the interleaved phases of the picture.

Dilation by d reads every d-th point, so the d * d phases of the input, y = p and x = q modulo d, never meet: a dense
convolution of each, in one batch, is the dilated one. With stride 2 only points of even phase are centres, which for
even d leaves dilation d / 2 on the even grid. Equal to rounding; which one is faster depends on the device's kernels.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from freescale.unet_patches import call_convs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from freescale.unet_patches import ConvCall, Patch


def dilate_on_phases(names: Sequence[str], factor: tuple[int, int]) -> Patch:
    """Compute the named 3 x 3 convolutions as if dilated by `factor` (height, width), on phases.

    A convolution that is not plain, or has another padding or size, raises `ValueError` when it is called.
    """

    def call_for(factor: tuple[int, int]) -> ConvCall:
        """Return the call of one convolution."""
        return lambda conv, x: phase_conv(conv, x, factor)

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Stand in for the named convolutions."""
        with call_convs(dict.fromkeys(names, call_for(factor)))(unet):
            yield

    return patch


def phase_conv(conv: Any, x: Tensor, factor: tuple[int, int]) -> Tensor:
    """Return the output of `conv`, 3 x 3 with padding 1 and stride 1 or 2, dilated by `factor`, for x (B, C, h, w)."""
    layer = getattr(conv, "base_layer", conv)
    stride = tuple(layer.stride)
    if layer is not conv or (tuple(layer.padding), tuple(layer.kernel_size)) != ((1, 1), (3, 3)) or layer.groups != 1:
        raise ValueError(f"convolution on phases is {conv}, allowed: a plain 3 x 3 one with padding 1")
    if stride == (1, 1):
        return _phases(layer, x, factor)
    if stride == (2, 2) and factor[0] % 2 == factor[1] % 2 == 0:
        return _phases(layer, x[..., ::2, ::2], (factor[0] // 2, factor[1] // 2))
    return _phases(layer, x, factor)[..., :: stride[0], :: stride[1]]


def _phases(conv: Any, x: Tensor, factor: tuple[int, int]) -> Tensor:
    """Return the stride-1 convolution, (B, C', h, w); beyond the border lie zeros, as its padding has them."""
    if factor == (1, 1):
        return F.conv2d(x, conv.weight, conv.bias, padding=1)
    (batch, channels, h, w), (p, q) = x.shape, factor
    x = F.pad(x, (0, -w % q, 0, -h % p))
    rows, columns = x.shape[-2] // p, x.shape[-1] // q
    x = x.view(batch, channels, rows, p, columns, q).permute(0, 3, 5, 1, 2, 4)
    y = F.conv2d(x.reshape(batch * p * q, channels, rows, columns), conv.weight, conv.bias, padding=1)
    y = y.view(batch, p, q, -1, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, -1, rows * p, columns * q)[..., :h, :w]
