"""Windows and phases: every token is seen, none is invented."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freescale.forward_process import generator
from freescale.windows import Windows, phase_tokens, place_windows, window_origins, window_size

grids = st.tuples(st.integers(1, 70), st.integers(1, 70))
scales = st.tuples(st.floats(1.0, 9.0), st.floats(1.0, 9.0))
borders = st.sampled_from(["clamp", "sink", "mask"])


@given(grid=grids, scale=scales, border=borders, seed=st.integers(0, 2**31), is_jittered=st.booleans())
def test_windows_cover_every_token(
    grid: tuple[int, int], scale: tuple[float, float], border: str, seed: int, is_jittered: bool
) -> None:
    jitter = generator(seed, "jitter") if is_jittered else None
    windows = place_windows(grid, scale, jitter=jitter, border=border)
    assert windows.count().min() >= 1
    tokens, outside = windows.tokens(), grid[0] * grid[1]
    seen = torch.bincount(tokens.flatten(), minlength=outside + 1)[:outside]
    assert torch.equal(seen.view(grid).float(), windows.count())
    if border == "clamp" or not is_jittered:
        assert tokens.max() < outside


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (8, 1), (1, 8), (1, 1), (5, 3)])
@pytest.mark.parametrize("border", ["clamp", "sink"])
def test_long_pictures_are_covered_under_many_draws(shape: tuple[int, int], border: str) -> None:
    for short, draw in itertools.product((7, 16, 33), range(5)):
        grid = (shape[0] * short, shape[1] * short)
        for scale in ((2.0, 2.0), (4.3, 4.3), (2.0, 4.0)):
            jitter = generator(draw, *grid)
            assert place_windows(grid, scale, jitter=jitter, border=border).count().min() >= 1


@pytest.mark.parametrize(
    ("grid", "scale", "window", "number"),
    [
        ((128, 128), (2.0, 2.0), (64, 64), 9),
        ((64, 64), (2.0, 2.0), (32, 32), 9),
        ((192, 192), (3.0, 3.0), (64, 64), 25),
        ((256, 256), (4.0, 4.0), (64, 64), 49),
        ((512, 512), (8.0, 8.0), (64, 64), 225),
        ((256, 128), (4.0, 4.0), (64, 32), 49),
        ((128, 256), (4.0, 4.0), (32, 64), 49),
        ((128, 64), (2.0, 2.0), (64, 32), 9),
        ((192, 64), (3.0, 3.0), (64, 21), 30),
        ((10, 16), (2.0, 2.0), (5, 8), 12),
        ((64, 64), (1.0, 1.0), (64, 64), 1),
    ],
)
def test_windows_of_the_release(
    grid: tuple[int, int], scale: tuple[float, float], window: tuple[int, int], number: int
) -> None:
    windows = place_windows(grid, scale)
    assert (windows.window, len(windows.origins)) == (window, number)
    assert windows.is_whole == (number == 1)


@given(length=st.integers(1, 300), window=st.integers(1, 300))
def test_origins_are_the_releases_enumeration(length: int, window: int) -> None:
    window = min(window, length)
    stride = max(1, window // 2)
    number = int((length - window) / stride - 1e-6) + 2 if length > window else 1
    expected = tuple(min(j * stride, length - window) for j in range(number))
    assert window_origins(length, window) == expected


def test_windows_move_by_an_eighth_and_borders_outwards_only() -> None:
    grid, scale = (64, 40), (4.0, 1.0)
    still = torch.tensor(place_windows(grid, scale).origins)
    moves = torch.stack(
        [
            torch.tensor(place_windows(grid, scale, jitter=generator(i), border="sink").origins) - still
            for i in range(400)
        ]
    )
    assert moves[..., 1].abs().max() == 0  # the window spans the width
    rows = moves[..., 0]
    assert rows[:, 0].unique().tolist() == [-2, -1, 0]
    assert rows[:, -1].unique().tolist() == [0, 1, 2]
    inner = rows[:, 1:-1].flatten()
    share = torch.bincount(inner + 2) / inner.numel()
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.04, rtol=0)  # 5 sigma of 2000 draws


@given(grid=grids, scale=scales, length=st.integers(1, 20))
def test_chunks_are_the_windows_in_order(grid: tuple[int, int], scale: tuple[float, float], length: int) -> None:
    windows = place_windows(grid, scale, jitter=generator(0), border="sink")
    chunks = list(windows.chunks(length))
    assert tuple(origin for chunk in chunks for origin in chunk.origins) == windows.origins
    assert max(len(chunk.origins) for chunk in chunks) <= length
    assert [chunk.origins for chunk in windows.chunks(None)] == [windows.origins]


def test_parts_of_a_window_beyond_the_grid() -> None:
    windows = Windows((3, 3), (2, 2), torch.tensor([[-1, 2]]))
    assert windows.tokens().tolist() == [[9, 9, 2, 9]]
    assert windows.overlap(0) == ((slice(0, 1), slice(2, 3)), (slice(1, 2), slice(0, 1)))


def test_window_is_the_training_grid() -> None:
    assert window_size((33, 50), (2.0, 2.0)) == (16, 25)  # half to even
    assert window_size((2, 3), (8.0, 8.0)) == (1, 1)
    assert window_size((12, 12), (0.5, 1.0)) == (12, 12)


@given(grid=grids, phases=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_phases_share_out_the_tokens(grid: tuple[int, int], phases: tuple[int, int]) -> None:
    groups = phase_tokens(grid, phases)
    every = torch.cat([group.flatten() for group in groups])
    assert torch.equal(every.sort().values, torch.arange(grid[0] * grid[1]))
    assert len(groups) <= 4
    for group in groups:
        for tokens in group:
            rows, columns = tokens // grid[1], tokens % grid[1]
            assert (rows % phases[0]).unique().numel() == (columns % phases[1]).unique().numel() == 1
