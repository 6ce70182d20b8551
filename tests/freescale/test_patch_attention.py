"""Neighbourhood patch attention against masked attention token by token, and what its blocks promise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from freescale.forward_process import generator
from freescale.grid_attention import GridAttention
from freescale.heads import project
from freescale.patch_attention import PatchAttention, attend_blocks, blocks
from freescale.windows import window_size
from tests.freescale.test_scale_fusion import CHANNELS, attention, tokens


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20))
def test_every_token_is_a_query_once_and_keys_are_inside(length: int, window: int, offset: int) -> None:
    window = min(window, length)
    found = blocks(length, window, offset % max(1, window // 2))
    assert [b.stop for b in found[:-1]] == [b.first for b in found[1:]]
    assert (found[0].first, found[-1].stop) == (0, length)
    assert all(0 < b.stop - b.first <= max(1, window // 2) for b in found)
    assert all(0 <= b.key <= length - window for b in found)
    assert all(b.key <= b.first and b.stop <= b.key + window for b in found), "a query is among its own keys"


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize(("grid", "scale"), [((7, 18), (2.0, 2.25)), ((9, 5), (3.0, 1.0)), ((6, 6), (2.0, 2.0))])
def test_equals_attention_with_a_mask(grid: tuple[int, int], scale: tuple[float, float], moves: bool) -> None:
    attn, x, window = attention(), tokens(grid, batch=2), window_size(grid, scale)
    asked = PatchAttention(scale, (lambda name: generator(4, name)) if moves else None)
    rows, columns = asked.axes("layer", grid)
    heads = project(attn, x)
    is_key = torch.zeros(grid[0], grid[1], grid[0], grid[1], dtype=torch.bool)
    for tall, wide in itertools.product(rows, columns):
        keys = slice(tall.key, tall.key + window[0]), slice(wide.key, wide.key + window[1])
        is_key[tall.first : tall.stop, wide.first : wide.stop, *keys] = True
    query, key, value = (part.transpose(1, 2) for part in heads)
    slow = F.scaled_dot_product_attention(query, key, value, attn_mask=is_key.flatten(2).flatten(0, 1))
    for window_rows in (None, 2):
        found = attend_blocks(heads, grid, window, rows, columns, window_rows)
        torch.testing.assert_close(found, slow.transpose(1, 2).flatten(2), atol=1e-12, rtol=0)


def processor(grid: tuple[int, int], asked: PatchAttention) -> tuple[Any, GridAttention]:
    attn = attention()
    return attn, GridAttention(
        attn.processor, "a.attentions.0.transformer_blocks.0.attn1", {"a.attentions.0": grid}, asked
    )


def test_a_window_as_large_as_the_grid_is_the_stock_processor() -> None:
    attn, patched = processor((4, 6), PatchAttention((1.0, 1.0), lambda name: generator(1, name)))
    x = tokens((4, 6))
    assert torch.equal(patched(attn, x), attn.processor(attn, x))


def test_rows_of_a_batch_are_independent() -> None:
    grid = (6, 10)
    attn, patched = processor(grid, PatchAttention((2.0, 2.0)))
    x = tokens(grid, batch=3)
    torch.testing.assert_close(patched(attn, x)[1:2], patched(attn, x[1:2]), atol=1e-13, rtol=0)
    assert patched(attn, x).shape == (3, 60, CHANNELS)


def test_what_the_jitter_draws_depends_on_its_layer_alone() -> None:
    asked = PatchAttention((4.0, 4.0), lambda name: generator(5, name))
    assert asked.axes("one", (64, 64)) == asked.axes("one", (64, 64))
    assert len({asked.axes(f"layer {n}", (64, 64)) for n in range(12)}) > 6
