"""Detail control: the cosine and the map of exponents."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freescale.detail import detail_weight, reference_weight, region_map


@pytest.mark.parametrize(
    ("timestep", "kappa"),
    [(981, 0.9991), (681, 0.7692), (481, 0.4702), (281, 0.1825), (1, 2.5e-6), (1000, 1.0), (0, 0.0)],
)
def test_cosine(timestep: float, kappa: float) -> None:
    assert detail_weight(timestep) == pytest.approx(kappa, rel=0.02 if kappa < 1e-3 else 3e-4, abs=1e-12)
    assert detail_weight(timestep / 10, 100) == pytest.approx(detail_weight(timestep), abs=1e-15)


@given(timestep=st.floats(0, 1000), exponent=st.floats(0, 50))
def test_constant_map_is_its_scalar(timestep: float, exponent: float) -> None:
    kappa, rounded = detail_weight(timestep), float(torch.tensor(exponent))
    scalar = reference_weight(kappa, rounded)
    spread = reference_weight(kappa, torch.full((1, 1, 3, 5), exponent))
    assert torch.equal(scalar.expand_as(spread), spread)
    assert scalar.shape == (1, 1, 1, 1)


def test_limits_of_the_exponent() -> None:
    assert reference_weight(0.5, 0.0).item() == 1.0
    assert reference_weight(0.5, math.inf).item() == 0.0
    assert reference_weight(2.5e-6, 3.0).item() > 0.0  # half precision would lose it


def test_masks_of_ones_and_zeros_are_scalars() -> None:
    ones = torch.ones(40, 24)
    assert torch.equal(region_map([ones], [3.0], 0.5, (5, 3)), torch.full((1, 1, 5, 3), 3.0))
    assert torch.equal(region_map([0 * ones], [3.0], 0.5, (5, 3)), torch.full((1, 1, 5, 3), 0.5))
    assert torch.equal(region_map([0.5 * ones], [3.0], 0.5, (5, 3)), torch.full((1, 1, 5, 3), 1.75))
    assert torch.equal(region_map([], [], 0.5, (5, 3)), torch.full((1, 1, 5, 3), 0.5))


def test_masks_are_averaged_over_cells() -> None:
    mask = torch.zeros(16, 16)
    mask[:, 12:] = 1.0
    assert region_map([mask], [4.0], 0.0, (2, 2)).tolist() == [[[[0.0, 2.0], [0.0, 2.0]]]]


@given(a=st.floats(0, 1, width=32), b=st.floats(0, 1, width=32), rest=st.floats(0, 4), scale=st.floats(0, 4))
def test_regions_share_out_each_cell(a: float, b: float, rest: float, scale: float) -> None:
    masks = [torch.full((8, 8), value) for value in (a, b)]
    total = max(a + b, 1.0)
    expected = (a * scale + b * 1.0) / total + (1.0 - (a + b) / total) * rest
    exponents = region_map(masks, [scale, 1.0], rest, (2, 2))
    assert exponents[0, 0, 1, 0].item() == pytest.approx(expected, abs=2e-6)


def test_coarse_masks_are_interpolated() -> None:
    enlarged = region_map([torch.tensor([[0.0, 1.0]])], [2.0], 0.0, (4, 8))
    assert enlarged.shape == (1, 1, 4, 8)
    assert (enlarged.diff(dim=-1) >= 0).all()
    assert 0.0 <= enlarged.min() <= enlarged.max() <= 2.0


@pytest.mark.parametrize("mask", [torch.full((4, 4), 1.1), torch.full((4, 4), -0.1), torch.zeros(1, 4, 4)])
def test_masks_out_of_range_are_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="allowed"):
        region_map([mask], [1.0], 0.0, (2, 2))


def test_one_scale_for_each_mask() -> None:
    with pytest.raises(ValueError, match="1 masks"):
        region_map([torch.ones(4, 4)], [1.0, 2.0], 0.0, (2, 2))


def test_a_map_without_numbers_gives_a_weight_without_numbers() -> None:
    """A plan traces a step with regions on the meta device."""
    weight = reference_weight(0.5, torch.empty(1, 1, 3, 5, device="meta"))
    assert weight.is_meta
    assert weight.shape == (1, 1, 3, 5)
