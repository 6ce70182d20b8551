"""One level of the discrete wavelet transform in two dimensions, as PyWavelets has it with its mode `symmetric`.

A picture becomes a low band LL of half the size and three bands of detail: LH (changes from row to row), HL (from
column to column) and HH (both). The wavelets are orthonormal, so the low-pass taps give all other filters.
Borders are mirrored, the edge included; a side of n gives bands of floor((n + taps - 1) / 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

Wavelet = Literal["db4", "sym4"]
Details = tuple["Tensor", "Tensor", "Tensor"]

WAVELETS: dict[Wavelet, tuple[float, ...]] = {
    "db4": (
        *(-0.010597401784997278, 0.032883011666982945, 0.030841381835986965, -0.18703481171888114),
        *(-0.02798376941698385, 0.6308807679295904, 0.7148465705525415, 0.23037781330885523),
    ),
    "sym4": (
        *(-0.07576571478927333, -0.02963552764599851, 0.49761866763201545, 0.8037387518059161),
        *(0.29785779560527736, -0.09921954357684722, -0.012603967262037833, 0.0322231006040427),
    ),
}
"""The low-pass taps of the analysis, of Daubechies' wavelets with four vanishing moments: extremal phase, and the least
asymmetric."""


def dwt2(x: Tensor, wavelet: Wavelet) -> tuple[Tensor, Details]:
    """Return (LL, (LH, HL, HH)) of x (..., h, w), each half as large and a few rows and columns more."""
    low, high = (half.mT for half in _halves(x.mT, wavelet))
    (ll, hl), (lh, hh) = (_halves(part, wavelet) for part in (low, high))
    return ll, (lh, hl, hh)


def idwt2(low: Tensor, details: Details, wavelet: Wavelet, size: tuple[int, int]) -> Tensor:
    """Return x (..., h, w) of `size` from the bands that `dwt2` gave of it."""
    lh, hl, hh = details
    low, high = (_whole(*halves, wavelet, size[1]) for halves in ((low, hl), (lh, hh)))
    return _whole(low.mT, high.mT, wavelet, size[0]).mT


def detail_of(x: Tensor, wavelet: Wavelet) -> Tensor:
    """Return the part of x (..., h, w) that its bands of detail hold, in its shape: x without its low band."""
    low, details = dwt2(x, wavelet)
    return idwt2(torch.zeros_like(low), details, wavelet, (x.shape[-2], x.shape[-1]))


def haar_low(x: Tensor) -> Tensor:
    """Return the low band of one level of Haar's wavelet, in the shape of x (B, C, h, w): the means of 2 x 2 cells.

    An odd last row or column is a mean of its own.
    """
    height, width = x.shape[-2:]
    means = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return means.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]


def _halves(x: Tensor, wavelet: Wavelet) -> tuple[Tensor, Tensor]:
    """Return the low and the high half of every row."""
    n, taps = x.shape[-1], _taps(wavelet, x)
    count = (n + taps.shape[-1] - 1) // 2
    at = torch.arange(2 - taps.shape[-1], 2 * count).remainder(2 * n)
    padded = x[..., torch.minimum(at, 2 * n - 1 - at)]
    halves = F.conv1d(padded.reshape(-1, 1, padded.shape[-1]), taps.flip(-1), stride=2)
    low, high = halves.reshape(*x.shape[:-1], *halves.shape[-2:]).unbind(-2)
    return low, high


def _whole(low: Tensor, high: Tensor, wavelet: Wavelet, length: int) -> Tensor:
    """Return rows of a length from both halves."""
    taps = _taps(wavelet, low)
    halves = torch.stack([low, high], -2).flatten(0, -3)
    rows = F.conv_transpose1d(halves, taps.flip(-1), stride=2)[:, 0, taps.shape[-1] - 2 :]
    return rows[:, :length].reshape(*low.shape[:-1], length)


def _taps(wavelet: Wavelet, like: Tensor) -> Tensor:
    """Return the taps (2, 1, taps) of the analysis, low and high, in the dtype of `like`."""
    low = torch.tensor(WAVELETS[wavelet], dtype=torch.float64)
    high = low.flip(0) * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(len(low) // 2)
    return torch.stack([low, high])[:, None].to(like)
