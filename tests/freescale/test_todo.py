"""ToDo against attention with a mask, and where it leaves a layer as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from freescale.grid_attention import GridAttention
from freescale.guidance import Conditioning, Denoiser
from freescale.heads import project
from freescale.methods import METHODS, Direct, FreeScale
from freescale.moment import Moment
from freescale.scale_fusion import Fusion, global_attention
from freescale.schedule import make_schedule
from freescale.todo import ToDo, kept_tokens, todo_patches
from freescale.unet_patches import patched
from freescale.windows import window_size
from tests.freescale.test_scale_fusion import attention, tokens
from tests.toys import is_same, level_at, render, snapshot

GRID = (7, 18)


def test_a_whole_factor_keeps_every_such_token() -> None:
    assert kept_tokens((4, 6), (2.0, 3.0)).tolist() == [0, 3, 12, 15]
    assert kept_tokens((3, 2), (1.0, 1.0)).tolist() == list(range(6))
    kept, window = kept_tokens(GRID, (1.5, 2.25)), window_size(GRID, (1.5, 2.25))
    assert len(kept) == len(set(kept.tolist())) == window[0] * window[1], "as many as in training"
    assert int(kept[0]) == 0
    assert int(kept[-1]) < GRID[0] * GRID[1]


@pytest.mark.parametrize("factor", [(2.0, 2.25), (1.0, 3.0)])
def test_equals_attention_with_a_mask(factor: tuple[float, float]) -> None:
    attn, x = attention(), tokens(GRID, batch=2)
    is_key = torch.zeros(GRID[0] * GRID[1], dtype=torch.bool)
    is_key[kept_tokens(GRID, factor)] = True
    query, key, value = (part.transpose(1, 2) for part in project(attn, x))
    slow = F.scaled_dot_product_attention(query, key, value, attn_mask=is_key[None].expand(len(is_key), -1))
    slow = slow.transpose(1, 2).flatten(2)
    found = GridAttention(attn.processor, "a.transformer_blocks.0.attn1", {"a": GRID}, ToDo(factor))(attn, x)
    torch.testing.assert_close(found, attn.to_out[0](slow), atol=1e-12, rtol=0)
    shared = global_attention(project(attn, x), GRID, thinning=factor).flatten(1, 2)
    torch.testing.assert_close(shared, slow, atol=1e-12, rtol=0)


def test_factor_one_is_the_stock_layer() -> None:
    attn, x = attention(dtype=torch.float32), tokens(GRID, dtype=torch.float32)
    found = GridAttention(attn.processor, "a.transformer_blocks.0.attn1", {"a": GRID}, ToDo((1.0, 1.0)))(attn, x)
    assert torch.equal(found, attn(x))
    assert list(todo_patches(level_at(1))) == []


def test_a_level_is_thinned_and_the_unet_is_left_as_it_was(
    sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any
) -> None:
    before, schedule, level = snapshot(sdxl_unet), make_schedule(scheduler_config, 2), level_at(1)
    asked, thinned = Denoiser(sdxl_unet, conditioning, 4.0), replace(level, thinning=(2.0, 2.0))
    for method in (Direct(), FreeScale(dilate=False)):
        plain = render(asked, method, level, schedule)
        assert torch.equal(render(asked, method, replace(level, thinning=(1.0, 1.0)), schedule), plain), method.name
        assert not torch.equal(render(asked, method, thinned, schedule), plain), method.name
    assert is_same(before, snapshot(sdxl_unet))


def test_a_method_that_goes_with_it_has_the_attention_of_the_model_or_says_what_is_thinned(
    sdxl_unet: Any, scheduler_config: Any
) -> None:
    moment = Moment(replace(level_at(1), thinning=(2.0, 2.0)), 1, make_schedule(scheduler_config, 3), 0)
    for name, kind in METHODS.items():
        method = kind()
        if method.thins:
            with patched(sdxl_unet, method.patches(moment)):
                layers = [p for p in sdxl_unet.attn_processors.values() if isinstance(p, GridAttention)]
            asked = [layer.asked for layer in layers]
            assert all(isinstance(each, Fusion) and each.thinning == (2.0, 2.0) for each in asked), name
    off = (FreeScale(fast=True), FreeScale(bands="local"), METHODS["swift"](), METHODS["demofusion"]())
    assert not any(method.thins for method in off)
    assert FreeScale(fast=True, fusion=False).thins
