"""The low band: what the filters promise, structure guidance and frequency mixing."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from freescale.forward_process import normal
from freescale.structure import BandFilter, guide_structure, low_band, mix_bands

KINDS = get_args(BandFilter)
X = normal((2, 4, 18, 24), 1, "x").double()


@pytest.mark.parametrize("kind", KINDS)
def test_constants_pass_and_a_band_as_large_as_the_grid_is_everything(kind: BandFilter) -> None:
    constant = torch.full((1, 4, 18, 24), 0.7, dtype=torch.float64)
    torch.testing.assert_close(low_band(constant, (5, 6), kind), constant, atol=1e-12, rtol=0)
    assert torch.equal(low_band(X, (18, 99), kind), X)
    assert low_band(X, (1, 1), kind).shape == X.shape


def test_box_is_a_projector_and_bilinear_is_none() -> None:
    once = low_band(X, (5, 6), "box")
    torch.testing.assert_close(low_band(once, (5, 6), "box"), once, atol=1e-12, rtol=0)
    once = low_band(X, (5, 6), "bilinear")
    assert (low_band(once, (5, 6), "bilinear") - once).norm() > 0.1 * once.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_guidance(kind: BandFilter) -> None:
    noise_pred, reference, sigma = normal(X.shape, 2, "e").double(), normal(X.shape, 3, "r").double(), 1.7
    given = (noise_pred, X, sigma)
    assert guide_structure(*given, reference, 0.0, (5, 6), kind) is noise_pred
    x0 = X - sigma * noise_pred
    torch.testing.assert_close(guide_structure(*given, x0, 1.0, (5, 6), kind), noise_pred, atol=1e-12, rtol=0)
    after = X - sigma * guide_structure(*given, reference, 0.6, (5, 6), kind)
    wanted = x0 + 0.6 * (low_band(reference, (5, 6), kind) - low_band(x0, (5, 6), kind))
    torch.testing.assert_close(after, wanted, atol=1e-12, rtol=0)
    if kind == "box":
        locked = X - sigma * guide_structure(*given, reference, 1.0, (5, 6), kind)
        torch.testing.assert_close(
            low_band(locked, (5, 6), kind), low_band(reference, (5, 6), kind), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_equal_halves_gives_them_back(kind: BandFilter) -> None:
    torch.testing.assert_close(mix_bands(X, X, (5, 6), kind), X, atol=1e-12, rtol=0)
    high = X - low_band(X, (5, 6), "box")
    if kind == "box":
        torch.testing.assert_close(mix_bands(high, X, (5, 6), kind), X, atol=1e-12, rtol=0)
