"""The wavelet transform against its definition, and back again."""

from __future__ import annotations

import math

import pytest
import torch

from freescale.forward_process import normal
from freescale.wavelets import WAVELETS, Wavelet, detail_of, dwt2, idwt2

SIZES = ((8, 10), (17, 20), (5, 3), (1, 2))  # even, odd, smaller than the taps


def halves(row: list[float], low: list[float]) -> tuple[list[float], list[float]]:
    """Low and high half of a row: y[k] = sum_j taps[j] x[2k + 1 - j], the row mirrored at its ends."""
    n, high = len(row), [(-1) ** (j + 1) * tap for j, tap in enumerate(reversed(low))]

    def at(i: int) -> float:
        i %= 2 * n
        return row[min(i, 2 * n - 1 - i)]

    count = range((n + len(low) - 1) // 2)
    parts = [[sum(tap * at(2 * k + 1 - j) for j, tap in enumerate(taps)) for k in count] for taps in (low, high)]
    return parts[0], parts[1]


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_taps_are_orthonormal_with_four_vanishing_moments(wavelet: Wavelet) -> None:
    low = torch.tensor(WAVELETS[wavelet], dtype=torch.float64)
    assert float(low.sum()) == pytest.approx(math.sqrt(2.0), abs=1e-12)
    for shift in range(4):
        assert float(low[2 * shift :] @ low[: len(low) - 2 * shift]) == pytest.approx(float(shift == 0), abs=1e-11)
    alternating = torch.tensor([(-1.0) ** j for j in range(len(low))], dtype=torch.float64)
    for power in range(4):
        moments = torch.arange(len(low), dtype=torch.float64) ** power
        assert float((alternating * low.flip(0)) @ moments) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_bands_are_those_of_the_definition(wavelet: Wavelet) -> None:
    x, taps = normal((5, 12), 1).double(), list(WAVELETS[wavelet])
    ll, (lh, hl, hh) = dwt2(x, wavelet)
    rows = [halves(row, taps) for row in x.tolist()]
    for across, (upper, lower) in enumerate(((ll, lh), (hl, hh))):
        columns = [halves(column, taps) for column in zip(*(row[across] for row in rows), strict=True)]  # type: ignore[arg-type]
        for down, band in enumerate((upper, lower)):
            wanted = torch.tensor([column[down] for column in columns], dtype=torch.float64).T
            torch.testing.assert_close(band, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_bands_give_the_picture_back(wavelet: Wavelet, size: tuple[int, int]) -> None:
    x = normal((2, 3, *size), 1).double()
    low, details = dwt2(x, wavelet)
    assert low.shape == (2, 3, (size[0] + 7) // 2, (size[1] + 7) // 2)
    torch.testing.assert_close(idwt2(low, details, wavelet, size), x, atol=1e-10, rtol=0)
    only_low = idwt2(low, (*(torch.zeros_like(d) for d in details),), wavelet, size)  # type: ignore[arg-type]
    torch.testing.assert_close(only_low + detail_of(x, wavelet), x, atol=1e-10, rtol=0)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_a_cubic_ramp_has_no_detail_inside(wavelet: Wavelet) -> None:
    ramp = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64) ** 3
    detail = detail_of(ramp[:, None] + 2.0 * ramp, wavelet)
    assert detail[8:-8, 8:-8].abs().max() < 1e-9
    assert detail.abs().max() > 1e-3
