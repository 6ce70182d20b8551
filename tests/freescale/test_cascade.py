"""Sizes of the cascade and of its first level."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freescale.cascade import Level, base_size_for, cascade_sizes

sides = st.integers(8, 512).map(lambda n: 8 * n)


@pytest.mark.parametrize(
    ("factor", "factors"),
    [
        (0.5, [0.5]),
        (1, [1]),
        (1.25, [1, 1.25]),
        (2, [1, 2]),
        (2.5, [1, 2.5]),
        (3, [1, 2, 3]),
        (4, [1, 2, 4]),
        (5, [1, 2, 5]),
        (6, [1, 2, 4, 6]),
        (8, [1, 2, 4, 8]),
    ],
)
def test_doubles_until_the_rest_is_small(factor: float, factors: list[float]) -> None:
    sizes = cascade_sizes((int(1024 * factor), int(768 * factor)), (1024, 768))
    assert sizes == tuple((int(1024 * f), int(768 * f)) for f in factors)


@given(base=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_levels_grow_to_exactly_the_target(base: tuple[int, int], size: tuple[int, int]) -> None:
    sizes = cascade_sizes(size, base)
    assert sizes[-1] == size
    if len(sizes) > 1:
        assert sizes[0] == base
    for (h0, w0), (h1, w1) in pairwise(sizes):
        assert 1.0 < max(h1 / h0, w1 / w0) <= 2.7  # 2.5, and the rounding of small sides
        assert h1 % 8 == w1 % 8 == 0


def test_each_axis_goes_its_own_way() -> None:
    assert cascade_sizes((512, 2048), (512, 512)) == ((512, 512), (512, 1024), (512, 2048))


def test_growth_must_grow() -> None:
    with pytest.raises(ValueError, match="growth is 1"):
        cascade_sizes((256, 256), (128, 128), growth=1)


@given(size=st.tuples(sides, sides))
def test_base_has_the_aspect_and_the_area_of_the_native_size(size: tuple[int, int]) -> None:
    base = base_size_for(size, (1024, 1024))
    assert base[0] <= size[0]
    assert base[1] <= size[1]
    if size[0] * size[1] <= 1024**2:
        assert base == size
    elif 1 / 8 <= size[0] / size[1] <= 8:
        assert base[0] * base[1] == pytest.approx(1024**2, rel=0.05)
        assert base[0] / base[1] == pytest.approx(size[0] / size[1], rel=0.05)


def test_base_of_known_sizes() -> None:
    assert base_size_for((4096, 4096), (1024, 1024)) == (1024, 1024)
    assert base_size_for((256, 512), (128, 128)) == (88, 184)
    assert base_size_for((64, 512), (128, 128)) == (64, 360)  # the shorter side stops at the minimum


@given(size=st.tuples(sides, sides), cell=st.sampled_from([4, 16, 32]))
def test_sizes_are_whole_cells_of_any_vae(size: tuple[int, int], cell: int) -> None:
    target, native = (size[0] * 4, size[1] * 4), (512, 512)
    base = base_size_for(target, native, cell=cell)
    if target[0] * target[1] > 512**2:
        for side, whole in zip(base, target, strict=True):
            assert side == whole or (side % cell == 0 and side >= 8 * cell)
    for level in cascade_sizes(target, base, cell=cell)[1:-1]:
        assert level[0] % cell == level[1] % cell == 0


def test_level_knows_its_scale() -> None:
    level = Level(2, (2048, 3072), (1024, 1024))
    assert (level.latent_hw, level.scale, level.factor, level.is_base) == ((256, 384), (2.0, 3.0), 3.0, False)
    assert Level(0, (512, 512), (512, 512), cell=4).latent_hw == (128, 128)
