"""Low-pass filters: a Gaussian over a token grid, and masks over a spectrum.

The Gaussian splits attention into structure and detail (FreeScale, "Scale Fusion"). It is separable, so each axis is
one matrix (size, size) of band width `taps`, and any border policy is just another matrix. The dense product keeps its
sums in float32 for half-precision inputs and costs at most as much as one projection of the layer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

BlurBorder = Literal["zero", "reflect", "renormalize"]
"""Beyond the border lie zeros (as released: corrections fade there), the mirrored inside, or nothing (the
taps that remain are scaled to sum to 1)."""

WIDEST_RADIUS = 6.0
"""In sigmas. Taps further out are below 2e-8 of the centre and add less than 1e-8 altogether."""


def gaussian_taps(kernel: int, sigma: float = 1.0) -> tuple[float, ...]:
    """Return the 1-D Gaussian of odd length `kernel`, summing to 1, cut at `WIDEST_RADIUS` sigmas."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"blur kernel is {kernel}, allowed: odd numbers from 1")
    if sigma <= 0:
        raise ValueError(f"blur sigma is {sigma}, allowed: above 0")
    radius = min(kernel // 2, math.ceil(WIDEST_RADIUS * sigma))
    weights = [math.exp(-0.5 * (u / sigma) ** 2) for u in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


@lru_cache(maxsize=64)
def blur_matrix(
    size: int, taps: tuple[float, ...], border: BlurBorder, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix (size, size) that blurs one axis, y = matrix @ x. Shared: not to be written to."""
    radius, position = len(taps) // 2, torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for offset, tap in enumerate(taps, start=-radius):
        source = position + offset
        if border == "reflect":
            period = max(2 * (size - 1), 1)
            source = source.remainder(period)
            source = torch.minimum(source, period - source).clamp(max=size - 1)
        kept = (source >= 0) & (source < size)
        matrix[position[kept], source[kept]] += tap
    if border == "renormalize":
        matrix /= matrix.sum(1, keepdim=True)
    return matrix.to(device, dtype)


def blur_grid(x: Tensor, taps: tuple[float, ...], border: BlurBorder = "zero") -> Tensor:
    """Return x (B, h, w, C) blurred along h and w."""
    if len(taps) == 1:
        return x
    batch, h, w, channels = x.shape
    rows = blur_matrix(h, taps, border, x.dtype, x.device)
    columns = blur_matrix(w, taps, border, x.dtype, x.device)
    x = torch.matmul(rows, x.reshape(batch, h, w * channels)).view(batch, h, w, channels)
    return torch.matmul(columns, x)


def blur_channels(x: Tensor, taps: tuple[float, ...], border: BlurBorder = "zero") -> Tensor:
    """Return x (..., C) blurred along its channels."""
    return x if len(taps) == 1 else F.linear(x, blur_matrix(x.shape[-1], taps, border, x.dtype, x.device))


@lru_cache(maxsize=64)
def low_pass_mask(
    size: tuple[int, int], spread: float, floor: float, is_weak: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return FouriScale's low-pass (arXiv:2403.12963) for `rfft2` of (h, w), (h, w // 2 + 1). Shared: do not write.

    Frequencies up to 1 / spread of the spectrum pass, and one bin more; beyond it the mask falls to `floor` on each
    axis: within an eighth of the axis, or, for the weak one, up to its end. The released mask is one bin off centre
    and the real part of the result is taken, which is to filter by (M(f) + M(-f)) / 2, what stands here.
    """
    rows, columns = (_low_pass_axis(n, max(spread, 1.0), floor, is_weak) for n in size)
    mirrored = torch.outer(_negated(rows), _negated(columns))
    mask = (torch.outer(rows, columns) + mirrored) / 2
    return mask[:, : size[1] // 2 + 1].to(device, dtype)


def _low_pass_axis(n: int, spread: float, floor: float, is_weak: bool) -> Tensor:
    """Return the released mask over the n frequencies 0, 1, …, -1 of one axis, float64."""
    frequency = torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64).round()
    bins = torch.where(frequency < 0, -frequency - 1, frequency)
    width = (spread - 1.0) * n // (2.0 * spread) if is_weak else max(n // 8, 1)
    if width == 0:
        return torch.ones(n, dtype=torch.float64)
    return (1.0 + (1.0 - floor) / width * (n / 2 / spread + 1.0 - bins)).clamp(floor, 1.0)


def _negated(axis: Tensor) -> Tensor:
    """Return what stands at frequency -f in place of f."""
    return axis.flip(0).roll(1)


def box_mask(size: tuple[int, int], half: tuple[float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask for `rfft2` of (h, w), (h, w // 2 + 1): 1 where the frequency is below `half` on each axis."""
    rows = torch.fft.fftfreq(size[0], 1.0 / size[0], dtype=torch.float64).abs() < half[0]
    columns = torch.fft.rfftfreq(size[1], 1.0 / size[1], dtype=torch.float64).abs() < half[1]
    return torch.outer(rows.double(), columns.double()).to(device, dtype)


def butterworth_mask(
    size: tuple[int, int], cut_off: float, order: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the low-pass for `rfft2` of (h, w), (h, w // 2 + 1): 1 / (1 + (f / cut_off)^(2 order)).

    f is the length of the frequency in shares of the highest one of an axis: 1 at half a turn a cell.
    """
    rows = 2.0 * torch.fft.fftfreq(size[0], dtype=torch.float64)[:, None]
    columns = 2.0 * torch.fft.rfftfreq(size[1], dtype=torch.float64)
    squared = (rows**2 + columns**2) / cut_off**2
    passes: Tensor = 1.0 / (1.0 + squared**order)
    return passes.to(device, dtype)


def fourier_filter(x: Tensor, mask: Tensor) -> Tensor:
    """Return real x (..., h, w) with its `rfft2` multiplied by `mask`, computed in the mask's dtype."""
    spectrum = torch.fft.rfft2(x.to(mask.dtype)) * mask
    filtered: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:])
    return filtered.to(x.dtype)


def blur_plane(x: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Return x (..., h, w) blurred along its last two axes, zeros beyond the border.

    Sums of shifted copies: for latents, whose few channels do not pay for a matrix at every step.
    """
    radius = len(taps) // 2
    for axis, pad in ((-2, (0, 0, radius, radius)), (-1, (radius, radius))):
        padded, length = F.pad(x, pad), x.shape[axis]
        x = torch.stack([tap * padded.narrow(axis, k, length) for k, tap in enumerate(taps)]).sum(0)
    return x


def is_identity(taps: tuple[float, ...]) -> bool:
    """Whether all but the centre tap vanish beside it in float32."""
    return 1.0 - taps[len(taps) // 2] < 2.0**-25
