"""Scale fusion against its definition, and what must hold whatever the weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freescale.forward_process import generator
from freescale.frequency import gaussian_taps
from freescale.grid_attention import GridAttention
from freescale.heads import Heads, attend, project
from freescale.scale_fusion import Fusion, fuse_scales, global_attention, local_attention
from freescale.windows import Windows, place_windows
from tests.oracles import scale_fusion as oracle
from tests.toys import points

CHANNELS = 8


def attention(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A diffusers self-attention with random weights."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(seed)
    attn = Attention(CHANNELS, **{"heads": 2, "dim_head": CHANNELS // 2, **options}).to(dtype).eval()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return attn.requires_grad_(False)


def tokens(grid: tuple[int, int], batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], CHANNELS, generator=stream).to(dtype)


def jitter(seed: int = 0) -> Any:
    return lambda name, grid: generator(seed, name, *grid)


def fused(attn: Any, x: Tensor, grid: tuple[int, int], fusion: Fusion) -> Tensor:
    return fuse_scales(attn, x, fusion.windows("layer", grid), fusion)


GRID, SCALE = (7, 18), (2.0, 2.25)  # windows of 4 x 8: odd sides, uneven phases, jitter on the second axis


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"border": "sink"},
        {"border": "mask"},
        {"channel_blur": False},
        {"phases": (2, 2)},
        {"phases": (3, 4), "border": "sink"},
        {"blur_border": "reflect"},
        {"blur_border": "renormalize", "channel_blur": False},
        {"bands": "local", "border": "mask"},
        {"bands": "global", "phases": (2, 2)},
        {"bands": "swapped", "border": "sink"},
    ],
    ids=str,
)
def test_equals_the_definition(options: dict[str, Any]) -> None:
    attn, x = attention(), tokens(GRID, batch=2)
    fusion = Fusion(SCALE, gaussian_taps(3), jitter=jitter(3), **options)
    windows = fusion.windows("layer", GRID)
    assert windows.window == (4, 8)
    output = fused(attn, x, GRID, fusion)
    renamed = {"channel_blur": "channels"}
    for row in range(2):
        slow = oracle.fuse(
            attn,
            x[row].view(*GRID, CHANNELS),
            windows.window,
            list(windows.origins),
            kernel=3,
            **{renamed.get(name, name): value for name, value in options.items()},
        )
        torch.testing.assert_close(output[row].view(slow.shape), slow, atol=1e-10, rtol=0)


LAYERS = [
    {"heads": 4, "dim_head": 2},
    {"heads": 1, "dim_head": 8, "out_bias": False},
    {"bias": True},
    {"qk_norm": "layer_norm", "bias": True},
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "border"),
    points(LAYERS, ("sink", "mask"), kept=lambda options, border: (border == "mask") == ("qk_norm" in options)),
    ids=str,
)
def test_equals_the_definition_for_every_kind_of_layer(options: dict[str, Any], border: str) -> None:
    """Projections with a bias turn the release's zero tokens into keys and values that are not zero."""
    attn, grid = attention(**options), (5, 17)
    x = tokens(grid)
    fusion = Fusion((1.25, 2.0), gaussian_taps(5), jitter=jitter(1), border=border)
    windows = fusion.windows("layer", grid)
    assert any(min(origin) < 0 for origin in windows.origins)
    slow = oracle.fuse(attn, x.view(*grid, CHANNELS), windows.window, list(windows.origins), kernel=5, border=border)
    torch.testing.assert_close(fused(attn, x, grid, fusion).view(slow.shape), slow, atol=1e-10, rtol=0)


@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    scale=st.tuples(st.floats(1.0, 5.0), st.floats(1.0, 5.0)),
    kernel=st.sampled_from([1, 3, 7]),
    is_fast=st.booleans(),
    channel_blur=st.booleans(),
)
def test_one_window_over_the_grid_changes_nothing(
    grid: tuple[int, int], scale: tuple[float, float], kernel: int, is_fast: bool, channel_blur: bool
) -> None:
    """L = G, so low + high is the layer itself, whatever the filter; in fast mode for one phase."""
    attn, x = attention(), tokens(grid)
    fusion = Fusion(scale, gaussian_taps(kernel), channel_blur=channel_blur, phases=(1, 1))
    whole = Windows(grid, grid, torch.zeros(1, 2, dtype=torch.int64))
    torch.testing.assert_close(fuse_scales(attn, x, whole, fusion), attn(x), atol=1e-12, rtol=0)
    if is_fast:
        heads = project(attn, x)
        one_phase = attend(heads, torch.arange(grid[0] * grid[1])[None])[:, 0]
        whole_grid = global_attention(heads, grid).flatten(1, 2)
        torch.testing.assert_close(one_phase, whole_grid, atol=1e-12, rtol=0)


def test_a_filter_that_keeps_all_returns_the_local_output() -> None:
    attn, x = attention(), tokens(GRID)
    fusion = Fusion(SCALE, gaussian_taps(1), jitter=jitter())
    local = fused(attn, x, GRID, dataclasses.replace(fusion, bands="local"))
    torch.testing.assert_close(fused(attn, x, GRID, fusion), local, atol=1e-12, rtol=0)


@pytest.mark.parametrize("border", ["clamp", "mask", "sink"])
def test_equal_tokens_stay_equal(border: Any) -> None:
    """All windows agree, except where zero tokens were let in: within a window and its jitter of the
    border."""
    grid, attn = (24, 24), attention()
    x = tokens((1, 1)).expand(1, 24 * 24, -1)
    fusion = Fusion((3.0, 3.0), gaussian_taps(5), jitter=jitter(), border=border)
    output = fused(attn, x, grid, fusion).view(*grid, CHANNELS)
    reach = 0 if border != "sink" else 8 + 1 + 2
    inner = output[reach : 24 - reach, reach : 24 - reach]
    torch.testing.assert_close(inner, attn(x)[0, 0].expand_as(inner), atol=1e-12, rtol=0)
    if border == "sink":
        assert (output[0, 0] - inner[0, 0]).abs().max() > 1e-3


def test_zero_tokens_scale_the_output() -> None:
    """m keys of logit 0 and value 0 divide the softmax's sum Z by (Z + m) / Z: out * sigmoid(log Z - log
    m)."""
    attn, x = attention(), tokens((1, 6))
    heads = project(attn, x)
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 6, 6]])
    padded = attend(Heads(*(torch.cat([a, torch.zeros_like(a[:, :1])], 1) for a in heads)), index)[0, 0, :6]
    query, key, value = (a[0].transpose(0, 1) for a in heads)
    logits = query @ key.mT / 2.0
    share = torch.sigmoid(logits.logsumexp(-1, keepdim=True) - torch.tensor(3.0, dtype=x.dtype).log())
    expected = (logits.softmax(-1) @ value * share).transpose(0, 1).flatten(1)
    torch.testing.assert_close(padded, expected, atol=1e-13, rtol=0)


def test_tokens_within_a_phase_may_be_permuted() -> None:
    attn, grid, phases = attention(), (6, 9), (2, 3)
    x = tokens(grid)
    permuted = x.view(3, 2, 3, 3, CHANNELS).flip(0, 2).reshape(x.shape)
    first = global_attention(project(attn, x), grid, phases)
    second = global_attention(project(attn, permuted), grid, phases)
    torch.testing.assert_close(second, first.view(3, 2, 3, 3, CHANNELS).flip(0, 2).view(first.shape))


def test_local_attention_moves_with_its_input() -> None:
    """On a larger canvas, shifted by a stride, without jitter: the interior shifts along."""
    attn, stride = attention(), 4
    x = tokens((32, 32)).view(1, 32, 32, CHANNELS)
    windows = place_windows((32, 32), (4.0, 4.0))
    here, there = (
        local_attention(project(attn, a.reshape(1, -1, CHANNELS)), windows)
        for a in (x, x.roll((stride, stride), (1, 2)))
    )
    inner = slice(8, 24)
    moved = slice(8 + stride, 24 + stride)
    torch.testing.assert_close(there[:, moved, moved], here[:, inner, inner], atol=1e-12, rtol=0)


@pytest.mark.parametrize("border", ["clamp", "sink", "mask"])
def test_result_does_not_depend_on_how_it_is_computed(border: Any) -> None:
    """Chunks of windows, rows of the batch, order of calls: float32 rounding at most."""
    attn, x = attention(dtype=torch.float32), tokens(GRID, batch=3, dtype=torch.float32)
    fusion = Fusion(SCALE, gaussian_taps(3), jitter=jitter(), border=border, phases=(2, 2))
    output = fused(attn, x, GRID, fusion)
    assert torch.equal(output, fused(attn, x, GRID, fusion))
    for window_rows in (1, 4, 6, 1000):
        chunked = fused(attn, x, GRID, dataclasses.replace(fusion, window_rows=window_rows))
        torch.testing.assert_close(chunked, output, atol=2e-6, rtol=0)
    rows = torch.cat([fused(attn, row, GRID, fusion) for row in x.split(1)])
    torch.testing.assert_close(rows, output, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_half_precision_stays_close(dtype: torch.dtype, tolerance: float) -> None:
    """Within a few units of the last place of the sums (eps 1e-3 and 8e-3, values of order 1), also for large
    logits."""
    x = tokens(GRID, dtype=torch.float32)
    for gain in (1.0, 30.0):
        attn = attention(dtype=torch.float32)
        attn.to_q.weight *= gain / 4
        fusion = Fusion(SCALE, gaussian_taps(3), jitter=jitter())
        half = fused(attn.to(dtype), x.to(dtype), GRID, fusion)
        full = fused(attn.to(torch.float32), x.to(dtype).float(), GRID, fusion)
        assert half.dtype == dtype
        assert bool(half.isfinite().all())
        if gain == 1.0:
            torch.testing.assert_close(half.float(), full, atol=tolerance * float(full.abs().max()), rtol=0)


def processor(attn: Any, grid: tuple[int, int], **options: Any) -> GridAttention:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    fusion = Fusion(**{"scale": SCALE, "taps": gaussian_taps(3), **options})
    return GridAttention(attn.processor, name, {"mid_block.attentions.0": grid}, fusion)


@pytest.mark.parametrize("phases", [(1, 1), (2, 2)])
def test_scale_one_is_the_stock_layer(phases: tuple[int, int]) -> None:
    attn, x = attention(dtype=torch.float32), tokens(GRID, dtype=torch.float32)
    assert torch.equal(processor(attn, GRID, scale=(1.0, 1.0), phases=phases)(attn, x), attn(x))


def test_anything_but_plain_self_attention_is_the_inner_processor() -> None:
    attn, x = attention(dtype=torch.float32), tokens(GRID, dtype=torch.float32)
    wrapped = processor(attn, GRID)
    context, mask = tokens((1, 5), dtype=torch.float32), torch.zeros(1, 1, 126)
    assert not torch.equal(wrapped(attn, x), attn(x))
    assert torch.equal(wrapped(attn, x, context), attn(x, context))
    assert torch.equal(wrapped(attn, x, None, mask), attn(x, None, mask))
    image = x.view(1, *GRID, CHANNELS).permute(0, 3, 1, 2)
    assert torch.equal(wrapped(attn, image), attn(image))
    normed = attention(dtype=torch.float32, norm_num_groups=2)
    assert torch.equal(processor(normed, GRID)(normed, x), normed(x))


def test_residual_and_rescale_are_the_layers_own() -> None:
    attn, x = attention(), tokens(GRID)
    plain = processor(attn, GRID)(attn, x)
    attn.residual_connection, attn.rescale_output_factor = True, 2.0
    torch.testing.assert_close(processor(attn, GRID)(attn, x), (plain + x) / 2.0, atol=1e-14, rtol=0)


def test_grid_of_another_picture_is_refused() -> None:
    attn = attention()
    with pytest.raises(ValueError, match="20 tokens, allowed: its grid 7 x 18"):
        processor(attn, GRID)(attn, tokens((4, 5)))
