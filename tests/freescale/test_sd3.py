"""Stable Diffusion 3 in miniature: scale fusion in its two kinds of attention, positions, and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, make_schedule, normal
from freescale.backbones.sd3 import SD3
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import gaussian_taps
from freescale.methods import Direct, FreeScale
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from tests.toys import goes_on, is_same, new_sd3, snapshot

FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "training", "shift": 3.0}
SIZE, BASE = (128, 96), (64, 48)  # pixels: 8 x 6 tokens, and 4 x 3
TEXT = 3


@cache
def network(medium: bool = True) -> Any:
    """The network with random weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_sd3(medium=medium).double().eval().requires_grad_(False)


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


def called(attn: Any, image: torch.Tensor, text: torch.Tensor | None, asked: Fusion | None) -> Any:
    """One attention module, fused where asked, else as the network has it."""
    with torch.no_grad(), patched(network(), [] if asked is None else [SD3(network()).fused(asked, (16, 12))]):
        return attn(image) if text is None else attn(image, text)


@pytest.mark.parametrize("name", ["transformer_blocks.0.attn", "transformer_blocks.3.attn"])
def test_windows_change_image_rows_alone(name: str) -> None:
    """The last block, which has no text behind it, too."""
    attn = network().get_submodule(name)
    image, text = normal((2, 48, 32), 0).double(), normal((2, TEXT, 32), 1).double()
    plain_image, plain_text = called(attn, image, text, None)
    made = {bands: called(attn, image, text, fusion(bands=bands)) for bands in ("fused", "local", "global", "swapped")}
    for _, text_rows in made.values():
        torch.testing.assert_close(text_rows, plain_text)
    torch.testing.assert_close(made["global"][0], plain_image)
    torch.testing.assert_close(made["fused"][0] + made["swapped"][0], made["local"][0] + plain_image)
    assert not torch.allclose(made["fused"][0], plain_image, atol=1e-3)
    whole = called(attn, image, text, fusion(scale=(1.0, 1.0)))
    assert torch.equal(whole[0], plain_image)
    assert torch.equal(whole[1], plain_text)


def test_attention_over_the_image_alone_is_fused_too() -> None:
    attn, image = network().transformer_blocks[0].attn2, normal((2, 48, 32), 0).double()
    plain = called(attn, image, None, None)
    torch.testing.assert_close(called(attn, image, None, fusion(bands="global")), plain)
    assert not torch.allclose(called(attn, image, None, fusion()), plain, atol=1e-3)


def test_positions_are_interpolated_from_the_training_size() -> None:
    embed, latents = network().pos_embed, normal((1, 4, 32, 24), 0).double()
    tokens = embed.proj(latents).flatten(2).transpose(1, 2)
    with patched(network(), [SD3(network()).positioned("pi", (32, 24), (16, 12))]):
        table = (network().pos_embed(latents) - tokens).unflatten(1, (16, 12))[0]
    own = embed.cropped_pos_embed(16, 12).unflatten(1, (8, 6))[0]
    between = (table[0::2] + table[1::2]) / 2  # a row of the training size lies midway between two rows
    between = (between[:, 0::2] + between[:, 1::2]) / 2
    torch.testing.assert_close(between[1:-1, 1:-1], own[1:-1, 1:-1], atol=0.03, rtol=0)  # a mean over half a token
    with patched(network(), [SD3(network()).positioned("pi", (16, 12), (16, 12))]):
        given = normal((1, 4, 16, 12), 0).double()
        torch.testing.assert_close(network().pos_embed(given), embed(given))


@pytest.mark.parametrize(
    ("medium", "method"),
    [
        (True, FreeScale(**FLOW, positions="pi", temperature="entropy")),
        pytest.param(False, Direct(positions="pi", temperature="entropy"), marks=pytest.mark.thorough),
    ],
    ids=["fusion", "direct"],
)
@pytest.mark.thorough
def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind(medium: bool, method: Any) -> None:
    rows = (normal((1, TEXT, 24), side) for side in (1, 2))
    pooled = ({"pooled_projections": normal((1, 20), side)} for side in (3, 4))
    held = Denoiser(network(medium), Conditioning(*(x.double() for x in rows), *_doubled(pooled)), 3.0)
    schedule = make_schedule(SCHEDULER, 3, tokens=48, shift_rule=method.shift_rule)
    reference, noise = normal((1, 4, 16, 12), 5), normal((1, 4, 16, 12), 6)
    level = Level(0, SIZE, BASE)
    if isinstance(method, FreeScale):
        level = Level(1, SIZE, BASE, reference=reference, noise=noise)
    before = snapshot(held.network)
    steps = goes_on(held, method, level, schedule)
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()


def _doubled(sides: Any) -> list[dict[str, torch.Tensor]]:
    return [{name: row.double() for name, row in side.items()} for side in sides]


@pytest.mark.parametrize("name", ["large", "medium"])
def test_the_temperature_is_the_scale_of_all_logits(name: str) -> None:
    """Where queries have no norm, too."""
    whole = network(name == "medium")
    attn, image = whole.transformer_blocks[0].attn, normal((1, 48, 32), 0).double()
    text = normal((1, TEXT, 32), 1).double()
    with torch.no_grad(), patched(whole, [SD3(whole).tempered(1.0)]):
        plain = attn(image, text)
    with torch.no_grad(), patched(whole, [SD3(whole).tempered(0.0)]):
        flat = attn(image, text)
    values = torch.cat([attn.to_v(image), attn.add_v_proj(text)], dim=1).mean(1, keepdim=True)
    torch.testing.assert_close(flat[0], attn.to_out[0](values).expand_as(image))
    torch.testing.assert_close(flat[1], attn.to_add_out(values).expand_as(text))
    torch.testing.assert_close(plain, attn(image, text))


def test_what_cannot_be_run_is_refused() -> None:
    rows = Conditioning(normal((1, TEXT, 24), 1), added={"pooled_projections": normal((1, 20), 2)})
    schedule = make_schedule(SCHEDULER, 3)
    with pytest.raises(ValueError, match="latents are 7 x 8 cells, allowed: multiples of 2"):
        Denoiser(network(), rows)(normal((1, 4, 7, 8), 0), 0, schedule)
    with pytest.raises(ValueError, match="positions is 'ntk', allowed: none, pi with a table of positions"):
        SD3(network()).positioned("ntk", (16, 12), (8, 6))
