"""Wan in miniature: scale fusion through all frames, positions, its VAE frame by frame, refusals."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, make_schedule, normal
from freescale.backbones.base import Rows, dtype_of
from freescale.backbones.wan import Wan
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import gaussian_taps
from freescale.methods import FreeScale
from freescale.rectified_attention import Rectified
from freescale.savings import chunk_feed_forward
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from freescale.vae.causal import cache_of, decoded, encoded, posterior, spans_of
from freescale.vae.causal_tiles import cell_bytes, decode_tiles, decoded_frames, encode_tiles, margin_of, tile_side
from freescale.vae.plan import VaeMemoryError
from tests.oracles import video_fusion as oracle
from tests.toys import goes_on, is_same, new_dense_wan_vae, new_wan, new_wan_vae, snapshot

FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
SCHEDULER = {"_class_name": FLOW_CLASS, "shift": 3.0, "max_image_seq_len": 12}
SIZE, BASE = (128, 96), (64, 48)  # pixels: 8 x 6 tokens, and 4 x 3
FRAMES = 2


@cache
def network() -> Any:
    """The network with random weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_wan().double().eval().requires_grad_(False)


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


def rotary(grid: tuple[int, int], frames: int = FRAMES) -> Any:
    return network().rope(torch.empty(1, 4, frames, 2 * grid[0], 2 * grid[1]))


def called(tokens: torch.Tensor, asked: Fusion | None, grid: tuple[int, int] = (8, 6)) -> torch.Tensor:
    """One attention over (B, F * h * w, C) tokens, fused where asked, else as the network has it."""
    changes = [] if asked is None else [Wan(network()).fused(asked, (2 * grid[0], 2 * grid[1]))]
    frames = tokens.shape[1] // (grid[0] * grid[1])
    with torch.no_grad(), patched(network(), changes):
        found: torch.Tensor = network().blocks[1].attn1(tokens, None, None, rotary(grid, frames))
        return found


@pytest.mark.thorough
def test_fusion_is_the_formula() -> None:
    attn, tokens = network().blocks[1].attn1, normal((1, FRAMES * 8, 32), 0).double()
    found = called(tokens, fusion(scale=(1.0, 2.0)), (2, 4))
    origins = [(0, left) for left in (0, 1, 2)]
    options: dict[str, Any] = {"dims": (8, 4, 4), "theta": 10000.0, "kernel": 3, "border": "renormalize"}
    expected = attn.to_out[0](oracle.fused(attn, tokens[0], FRAMES, (2, 4), (2, 2), origins, **options))
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-6)  # the network's table is float32


def test_bands_say_what_is_taken() -> None:
    tokens = normal((2, FRAMES * 48, 32), 0).double()
    plain = called(tokens, None)
    made = {bands: called(tokens, fusion(bands=bands)) for bands in ("fused", "local", "global", "swapped")}
    torch.testing.assert_close(made["global"], plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(made["fused"] + made["swapped"], made["local"] + made["global"])
    torch.testing.assert_close(called(tokens, fusion(window_rows=2)), made["fused"])
    assert not torch.allclose(made["fused"], plain, atol=1e-3)
    assert torch.equal(called(tokens, fusion(scale=(1.0, 1.0))), plain)


def test_a_window_is_a_video_of_the_training_size() -> None:
    """The first column is in the first window alone, through all frames."""
    tokens = normal((1, FRAMES, 4, 6, 32), 0).double()
    found = called(tokens.flatten(1, 3), fusion(scale=(1.0, 2.0), bands="local"), (4, 6)).unflatten(1, (FRAMES, 4, 6))
    alone = called(tokens[:, :, :, :3].flatten(1, 3), None, (4, 3)).unflatten(1, (FRAMES, 4, 3))
    torch.testing.assert_close(found[:, :, :, 0], alone[:, :, :, 0], atol=1e-6, rtol=1e-6)


def test_rows_and_columns_are_turned_by_a_rule_and_frames_are_not() -> None:
    """At the training size the tables are the network's own; slowed down by 2, whole tokens are half ones."""
    backbone, own = Wan(network()), rotary((4, 3))
    with patched(network(), [backbone.positioned("pi", (8, 6), (8, 6))]):
        found = rotary((4, 3))
    for each, expected in zip(found, own, strict=True):
        torch.testing.assert_close(each, expected, atol=1e-6, rtol=0)
    with patched(network(), [backbone.positioned("pi", (16, 16), (8, 8))]):
        slowed = [each.view(FRAMES, 8, 8, -1)[:, ::2, ::2].flatten(0, 2) for each in rotary((8, 8))]
    for each, expected in zip(slowed, rotary((4, 4)), strict=True):
        torch.testing.assert_close(each, expected[0, :, 0], atol=1e-6, rtol=0)
    with patched(network(), [backbone.positioned("yarn", (16, 12), (8, 6))]):
        cosines = rotary((8, 6))[0].view(FRAMES, 8, 6, -1)
    assert torch.equal(cosines[0, 0, 0, :8], torch.ones(8))
    assert cosines[0, 0, 0, 8:].min() > 1.05


def test_rectified_attention_is_plain_where_nothing_is_too_far() -> None:
    """Tiles through all frames give what attention over everything gives, if no key is farther than in training."""
    tokens = normal((1, FRAMES * 48, 32), 0).double()
    with torch.no_grad(), patched(network(), [Wan(network()).rectified(Rectified(0.4, 1.0), (16, 12), (14, 12))]):
        found = network().blocks[1].attn1(tokens, None, None, rotary((8, 6)))
    plain = called(tokens, None)
    assert not torch.allclose(found, plain, atol=1e-4), "the last row is farther from the first than in training"
    near = slice(6 * 3, 6 * 6)  # the tile of rows 3 to 5 of the first frame is near enough to all others
    torch.testing.assert_close(found[:, near], plain[:, near], atol=1e-6, rtol=1e-6)


def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind() -> None:
    held = Denoiser(network(), Conditioning(*(normal((1, 5, 24), side).double() for side in (1, 2))), 3.0)
    method = FreeScale(**FLOW, positions="yarn", temperature="entropy")
    schedule = make_schedule(SCHEDULER, 3, tokens=48, shift_rule=method.shift_rule)
    shape = (1, 4, FRAMES, 16, 12)
    level = Level(1, SIZE, BASE, reference=normal(shape, 5), noise=normal(shape, 6))
    before = snapshot(held.network)
    steps = goes_on(held, method, level, schedule, frames=(FRAMES,))
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()


@pytest.mark.parametrize("is_dense", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_its_vae_takes_a_latent_frame_at_a_time(is_dense: bool) -> None:
    """To the bit what it makes of the whole video, in float32."""
    cell, stock = 16 if is_dense else 8, copy.deepcopy(vae(is_dense)).float()
    latents, video = normal((1, 4, 4, 3, 2), 0), normal((1, 3, 13, 3 * cell, 2 * cell), 1)
    frames = list(decoded(stock, latents))
    assert [each.shape[2] for each in frames] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(frames, dim=2).clamp(-1, 1), stock.decode(latents).sample)
    parts = (video[:, :, first:end] for first, end in spans_of(13, 4))
    mean, deviation = posterior(stock, torch.cat(list(encoded(stock, parts)), dim=2))
    expected = stock.encode(video).latent_dist
    assert torch.equal(mean, expected.mean)
    assert torch.equal(deviation, expected.std)


@cache
def vae(is_dense: bool = False) -> Any:
    """Its VAE with random weights in float64, or that of Wan 2.2 5B."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = new_dense_wan_vae() if is_dense else new_wan_vae()
        return made.double().eval().requires_grad_(False)


@pytest.mark.thorough
@pytest.mark.parametrize("is_dense", [False, True])
def test_tiles_of_its_vae_are_the_whole(is_dense: bool) -> None:
    cell = 16 if is_dense else 8
    latents, video = normal((1, 4, 2, 40, 9), 0).double(), normal((1, 3, 5, 40 * cell, 9 * cell), 1).double()
    whole = torch.cat(list(decoded(vae(is_dense), latents)), dim=2)
    found = torch.stack(list(decode_tiles(vae(is_dense), latents, 16)), dim=2)
    torch.testing.assert_close(found, whole.half(), atol=1e-3, rtol=0)
    parts = [video[:, :, first:end] for first, end in spans_of(5, 4)]
    features = encode_tiles(vae(is_dense), lambda: parts, (1, 2, 40, 9), 16)
    torch.testing.assert_close(features, torch.cat(list(encoded(vae(is_dense), parts)), dim=2))


@pytest.mark.thorough
def test_a_margin_is_all_that_a_tile_depends_on() -> None:
    """To the last bits of float64: below the margin everything is another picture, and nothing of it is seen."""
    decoder, margin = vae().decoder, margin_of(vae(), "decoder")
    first, second = normal((1, 12, 1, 2 * margin + 4, 3), 0).double(), normal((1, 12, 1, 2 * margin + 4, 3), 1).double()
    second[:, :, :, : margin + 4] = first[:, :, :, : margin + 4]
    made = [decoded_frames(decoder, each, cache_of(decoder), True)[:, :, :, : 4 * 8] for each in (first, second)]
    assert torch.equal(*made)


def test_memory_says_how_large_tiles_are() -> None:
    each, margin = cell_bytes(vae(), "decoder"), margin_of(vae(), "decoder")
    assert tile_side(vae(), "decoder", (20, 20), None) is None
    assert tile_side(vae(), "decoder", (20, 20), 400 * each) is None
    assert tile_side(vae(), "decoder", (99, 99), each * (20 + 2 * margin) ** 2) == 20
    with pytest.raises(VaeMemoryError, match="does not suffice for tiles of 64 pixels"):
        tile_side(vae(), "decoder", (99, 99), each)


def test_feed_forwards_work_in_parts() -> None:
    given = normal((1, 4, FRAMES, 8, 6), 0).double(), 500.0, Rows(normal((1, 5, 24), 1).double())
    plain = Wan(network()).run(*given)
    with patched(network(), [chunk_feed_forward(5)]):
        torch.testing.assert_close(Wan(network()).run(*given), plain)


def test_parts_that_stay_in_float32_do_not_say_what_is_computed_in() -> None:
    half = new_wan().to(torch.bfloat16)
    for name, each in half.named_parameters():
        if "scale_shift_table" in name:
            each.data = each.data.float()
    assert dtype_of(half) == torch.bfloat16


def test_what_cannot_be_run_is_refused() -> None:
    rows = Rows(normal((1, 5, 24), 1).double())
    with pytest.raises(ValueError, match="latents are 7 x 8 cells, allowed: multiples of 2"):
        Wan(network()).run(normal((1, 4, 1, 7, 8), 0), 500.0, rows)
    with pytest.raises(ValueError, match=r"guidance is 3\.5, allowed: None with this network"):
        Wan(network()).run(normal((1, 4, 1, 8, 8), 0), 500.0, Rows(rows.embeds, guidance=3.5))
