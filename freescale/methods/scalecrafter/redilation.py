"""Re-dilated and dispersed convolutions (ScaleCrafter, arXiv:2310.07702, sections of these names).

A convolution re-dilated by d has a receptive field d times as wide. Whole factors are ordinary dilation. For others
the input is enlarged by ceil(d) / d, convolved with dilation ceil(d), and the output brought back to its size.

A dispersed kernel k' = R k has 5 x 5 taps in place of 3 x 3 and half the dilation: as large a field without the gaps.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from freescale.dilation import convs_under
from freescale.unet_patches import call_convs, dilated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from freescale.unet_patches import ConvCall, Patch


def redilate_convs(factors: Mapping[str, float], dispersed: Collection[str] = (), closeness: float = 0.05) -> Patch:
    """Re-dilate each named convolution by its factor, with a dispersed kernel where it is in `dispersed` too.

    A dispersed convolution that has no factor counts as one of factor 1.
    """

    def call_for(name: str) -> ConvCall:
        """Return the call of one convolution."""
        factor = factors.get(name, 1.0)
        if name not in dispersed:
            return lambda conv, x: redilate(conv, x, factor)
        return lambda conv, x: disperse(conv, x, factor, closeness)

    return call_convs({name: call_for(name) for name in (*factors, *(n for n in dispersed if n not in factors))})


def factors_under(unet: nn.Module, layers: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the factor of every convolution at or below the named blocks; a later block wins."""
    return {name: factor for block, factor in layers for name in convs_under(unet, block)}


def redilate(conv: Any, x: Tensor, factor: float) -> Tensor:
    """Return `conv(x)` with a field `factor` times as wide, in the size of `conv(x)`, for x (B, C, h, w).

    Raises `ValueError` for a factor of 0 or less.
    """
    if factor <= 0.0:
        raise ValueError(f"re-dilation factor is {factor}, allowed: above 0")
    dilation = math.ceil(factor)
    if factor == dilation:
        with dilated(conv, (dilation, dilation)):
            output: Tensor = conv(x)
        return output
    h, w = x.shape[-2:]
    stride: tuple[int, int] = getattr(conv, "base_layer", conv).stride
    enlarged = _resize(x, round(h * dilation / factor), round(w * dilation / factor))
    with dilated(conv, (dilation, dilation)):
        output = conv(enlarged)
    return _resize(output, -(-h // stride[0]), -(-w // stride[1]))


def _resize(x: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(x, (h, w), mode="bilinear")


def disperse(conv: nn.Module, x: Tensor, factor: float, closeness: float = 0.05) -> Tensor:
    """Return `redilate(conv, x, factor)` with the kernel dispersed: 5 x 5 taps at half the dilation."""
    with _dispersed(conv, closeness):
        return redilate(conv, x, factor / 2)


@contextmanager
def _dispersed(conv: Any, closeness: float) -> Iterator[None]:
    """Give a 3 x 3 convolution its dispersed kernel, made for this call only: it is 25 / 9 of the weights."""
    conv = getattr(conv, "base_layer", conv)
    weight, padding = conv.weight, conv.padding
    matrix = dispersion_matrix(closeness).to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    kernel = (weight.flatten(2).to(matrix) @ matrix.mT).view(*weight.shape[:2], 5, 5).to(weight.dtype)
    conv.weight, conv.padding = torch.nn.Parameter(kernel, requires_grad=False), (2, 2)
    try:
        yield
    finally:
        conv.weight, conv.padding = weight, padding


@lru_cache(maxsize=8)
def dispersion_matrix(closeness: float = 0.05, grid: int = 3) -> Tensor:
    """Return R (25, 9), float64, of least squares: k' = R k acts on enlarged inputs as k does on inputs.

    R minimises |U (k * e) - k' * (U e)|^2 + closeness^2 |k * e - k' * e|^2 over all inputs e of grid x grid, with U
    enlarging to 2 grid - 1 points a side, corners aligned (Convolution Dispersion; the paper's eta is `closeness`).
    Kernels are numbered row by row. Shared: not to be written to.
    """
    inputs = torch.eye(grid * grid, dtype=torch.float64).view(-1, 1, grid, grid)
    enlarged = _enlarge(inputs)
    narrow, wide = _correlation(inputs, 3), _correlation(inputs, 5)
    images = narrow.mT.reshape(-1, 1, grid, grid)  # k * e for each unit kernel k and each e
    wanted = _enlarge(images).view(grid * grid, 9, -1).mT.flatten(0, 1)
    system = torch.cat([_correlation(enlarged, 5).flatten(0, 1), closeness * wide.flatten(0, 1)])
    matrix: Tensor = torch.linalg.lstsq(system, torch.cat([wanted, closeness * narrow.flatten(0, 1)])).solution
    return matrix


def _enlarge(x: Tensor) -> Tensor:
    side = 2 * x.shape[-1] - 1
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


def _correlation(x: Tensor, kernel: int) -> Tensor:
    """Return the matrices (N, points, kernel^2) that take a kernel to its correlation with each image of x."""
    return F.unfold(x, kernel, padding=kernel // 2).mT
