"""The Gaussian: its taps, its matrix, its borders."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freescale.frequency import blur_channels, blur_grid, blur_matrix, gaussian_taps
from tests.oracles import scale_fusion as oracle

CPU = torch.device("cpu")


@pytest.mark.parametrize("kernel", [1, 3, 7, 11, 15, 31, 127])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_taps_are_a_symmetric_mean(kernel: int, sigma: float) -> None:
    taps = gaussian_taps(kernel, sigma)
    assert math.fsum(taps) == pytest.approx(1.0, abs=1e-15)
    assert taps == taps[::-1]
    assert len(taps) == min(kernel, 2 * math.ceil(6 * sigma) + 1)


def test_taps_of_the_release() -> None:
    assert [round(tap, 3) for tap in gaussian_taps(3)] == [0.274, 0.452, 0.274]
    assert [round(tap, 3) for tap in gaussian_taps(7)][:4] == [0.004, 0.054, 0.242, 0.399]


@pytest.mark.parametrize(("kernel", "sigma", "lost"), [(15, 1.0, 1e-10), (127, 1.0, 1e-10), (127, 5.0, 4e-9)])
def test_far_taps_may_go(kernel: int, sigma: float, lost: float) -> None:
    """The taps beyond six sigmas, in L1: 4.6e-11 at sigma 1, where the seventh is the first to go."""
    weights = [math.exp(-0.5 * (u / sigma) ** 2) for u in range(-(kernel // 2), kernel // 2 + 1)]
    taps = gaussian_taps(kernel, sigma)
    margin = (kernel - len(taps)) // 2
    padded = [0.0] * margin + list(taps) + [0.0] * margin
    assert sum(abs(w / sum(weights) - tap) for w, tap in zip(weights, padded, strict=True)) < lost


@pytest.mark.parametrize("border", ["zero", "reflect", "renormalize"])
@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 3, 2), (2, 1, 7)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_matrices_equal_the_sum_over_neighbours(border: str, shape: tuple[int, int, int], kernel: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = gaussian_taps(kernel, 1.3)
    plane = blur_grid(x[None], taps, border)
    torch.testing.assert_close(plane[0], oracle.blur(x, kernel, 1.3, border, False), atol=1e-12, rtol=0)
    solid = blur_channels(plane, taps, border)
    torch.testing.assert_close(solid[0], oracle.blur(x, kernel, 1.3, border, True), atol=1e-12, rtol=0)


@given(size=st.integers(1, 40), kernel=st.integers(0, 10).map(lambda n: 2 * n + 1))
def test_rows_sum_to_one(size: int, kernel: int) -> None:
    """All of them, except that zeros beyond the border take from the first and last kernel // 2."""
    taps = gaussian_taps(kernel)
    for border in ("reflect", "renormalize", "zero"):
        sums = blur_matrix(size, taps, border, torch.float64, CPU).sum(1)
        inner = slice(None) if border != "zero" else slice(kernel // 2, size - kernel // 2)
        torch.testing.assert_close(sums[inner], torch.ones_like(sums[inner]), atol=1e-14, rtol=0)
    assert bool((sums[: min(kernel // 2, size, 4)] < 1).all())  # the fifth tap, 7e-6, is the last to show


def test_impulse_response_is_separable() -> None:
    x = torch.zeros(1, 15, 15, 1, dtype=torch.float64)
    x[0, 7, 7, 0] = 1.0
    taps = torch.tensor(gaussian_taps(7), dtype=torch.float64)
    response = blur_grid(x, gaussian_taps(7))[0, 4:11, 4:11, 0]
    torch.testing.assert_close(response, torch.outer(taps, taps), atol=1e-16, rtol=0)


def test_one_tap_is_the_identity() -> None:
    x = torch.randn(1, 3, 4, 5)
    assert blur_grid(x, gaussian_taps(1)) is x
    assert blur_channels(x, gaussian_taps(1)) is x


@pytest.mark.parametrize(("kernel", "sigma"), [(2, 1.0), (0, 1.0), (-3, 1.0), (3, 0.0)])
def test_kernels_without_a_meaning_are_refused(kernel: int, sigma: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        gaussian_taps(kernel, sigma)
