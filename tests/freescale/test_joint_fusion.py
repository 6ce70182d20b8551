"""Scale fusion in joint attention against a slow one, and FreeScale on FLUX in miniature."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, make_schedule, normal
from freescale.backbones import backbone_of
from freescale.backbones.flux import Flux, image_ids
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import gaussian_taps
from freescale.joint_fusion import JointFusion
from freescale.methods import Direct, FreeScale
from freescale.moment import Moment
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from tests.oracles import joint_fusion as oracle
from tests.toys import flux_network, goes_on, is_same, render, snapshot

CPU = torch.device("cpu")
FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps", "use_dynamic_shifting": True}
SIZE, BASE = (128, 96), (64, 48)  # pixels: 8 x 6 tokens, and 4 x 3
TEXT = 3


def double() -> Any:
    return copy.deepcopy(flux_network()).double()


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


def called(network: Any, attn: Any, image: torch.Tensor, text: torch.Tensor, fusion: Fusion | None) -> torch.Tensor:
    """One attention module, its text rows first; fused where asked, else as the network has it."""
    rotary = network.pos_embed(torch.cat([torch.zeros(TEXT, 3), image_ids((8, 6), CPU)]))
    changes = [] if fusion is None else [Flux(network).fused(fusion, (16, 12))]
    with torch.no_grad(), patched(network, changes):
        if attn.added_kv_proj_dim is None:
            return attn(torch.cat([text, image], dim=1), image_rotary_emb=rotary)
        of_image, of_text = attn(image, text, image_rotary_emb=rotary)
        return torch.cat([of_text, of_image], dim=1)


@pytest.mark.parametrize("block", ["double", "single"])
def test_fusion_is_the_formula(block: str) -> None:
    network = double()
    blocks = network.transformer_blocks if block == "double" else network.single_transformer_blocks
    attn, image, text = blocks[1].attn, normal((1, 48, 32), 0).double(), normal((1, TEXT, 32), 1).double()
    found = called(network, attn, image, text, fusion())
    origins = [(top, left) for top in (0, 2, 4) for left in (0, 1, 2, 3)]
    options: dict[str, Any] = {"dims": (4, 6, 6), "theta": 10000.0, "kernel": 3, "border": "renormalize"}
    with torch.no_grad():
        given = (image[0], text[0]) if block == "double" else (torch.cat([text, image], dim=1)[0], None)
        expected = oracle.fused(attn, *given, TEXT, (8, 6), (4, 3), origins, **options)
        if block == "double":
            expected = torch.cat([attn.to_add_out(expected[:TEXT]), attn.to_out[0](expected[TEXT:])])
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-6)  # the network's table is float32


def test_bands_say_what_is_taken() -> None:
    network = double()
    attn, image, text = network.transformer_blocks[0].attn, normal((2, 48, 32), 0).double(), normal((2, TEXT, 32), 1)
    text = text.double()
    plain, made = called(network, attn, image, text, None), {}
    for bands in ("fused", "local", "global", "swapped"):
        made[bands] = called(network, attn, image, text, fusion(bands=bands))
        torch.testing.assert_close(made[bands][:, :TEXT], plain[:, :TEXT])
    torch.testing.assert_close(made["global"], plain)
    torch.testing.assert_close(called(network, attn, image, text, fusion(taps=(1.0,))), made["local"])
    torch.testing.assert_close(called(network, attn, image, text, fusion(taps=(1.0,), bands="swapped")), plain)
    torch.testing.assert_close(made["fused"] + made["swapped"], made["local"] + plain)
    assert not torch.allclose(made["local"], plain, atol=1e-3)
    torch.testing.assert_close(called(network, attn, image, text, fusion(window_rows=2)), made["fused"])
    torch.testing.assert_close(called(network, attn, image, text, fusion(scale=(1.0, 1.0))), plain, atol=0, rtol=0)


def test_windows_turn_at_the_networks_own_pace() -> None:
    """Whatever rule the positions of the grid have: local attention does not see it."""
    network = double()
    attn, image, text = network.transformer_blocks[0].attn, normal((1, 48, 32), 0).double(), normal((1, TEXT, 32), 1)
    asked = fusion(bands="local")
    with patched(network, [backbone_of(network).positioned("pi", (16, 12), (8, 6))]):
        stretched = called(network, attn, image, text.double(), asked)
    found = called(network, attn, image, text.double(), asked)
    torch.testing.assert_close(stretched[:, TEXT:], found[:, TEXT:])
    assert not torch.allclose(stretched[:, :TEXT], found[:, :TEXT])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_blur": True}, "channel_blur is True, allowed: False in joint attention"),
        ({"border": "sink"}, "border is 'sink', allowed: 'clamp'"),
        ({"phases": (2, 2)}, "phases is"),
        ({"thinning": (0.5, 0.5)}, "thinning is"),
    ],
    ids=str,
)
def test_what_joint_attention_has_no_meaning_for_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointFusion(fusion(**change))


def denoiser() -> Denoiser:
    embeds, negative = normal((1, TEXT, 24), 1), normal((1, TEXT, 24), 2)
    pooled = ({"pooled_projections": normal((1, 20), side)} for side in (3, 4))
    return Denoiser(flux_network(), Conditioning(embeds, negative, *pooled), 3.0)


def level_at(index: int) -> Level:
    reference, noise = normal((1, 4, 16, 12), 5), normal((1, 4, 16, 12), 6)
    return Level(1, SIZE, BASE, reference=reference, noise=noise) if index else Level(0, BASE, BASE)


@pytest.mark.parametrize(
    "method",
    [
        FreeScale(**FLOW),
        FreeScale(**FLOW, positions="yarn", temperature="entropy"),
        Direct(positions="pi"),
    ],
    ids=["fusion", "all", "direct"],
)
def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind(method: Any) -> None:
    held, schedule = denoiser(), make_schedule(SCHEDULER, 5, tokens=48, shift_rule=method.shift_rule)
    method.check_backbone(held.backbone.kind)
    level = Level(0, SIZE, BASE) if isinstance(method, Direct) else level_at(1)
    before = snapshot(held.network)
    steps = goes_on(held, method, level, schedule)
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()


def test_each_change_moves_the_picture_and_none_at_the_training_size() -> None:
    held, schedule = denoiser(), make_schedule(SCHEDULER, 3, tokens=48)
    plain = render(held, FreeScale(**FLOW, fusion=False), level_at(1), schedule)
    for change in ({}, {"fusion": False, "positions": "ntk"}, {"fusion": False, "temperature": "entropy"}):
        assert not torch.equal(render(held, FreeScale(**FLOW | change), level_at(1), schedule), plain)
    direct = render(held, Direct(), level_at(0), schedule)
    for method in (FreeScale(**FLOW, positions="pi"), Direct(positions="yarn", temperature="entropy")):
        assert torch.equal(render(held, method, level_at(0), schedule), direct)


def test_the_dilation_of_a_unet_is_refused() -> None:
    for change in ({"dilate": True}, {"channel_blur": True}, {"fast": True}, {"border": "sink"}):
        with pytest.raises(ValueError, match=rf"{next(iter(change))} is .*, allowed: .* with flow models"):
            FreeScale(**FLOW | change).check_backbone("flow")
    moment = Moment(level_at(1), 2, make_schedule(SCHEDULER, 5, tokens=48), 0)
    assert [*FreeScale(**FLOW).patches(moment)]
