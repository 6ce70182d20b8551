"""FLUX.2 in miniature, with random weights: against the stock pipeline, its latents, and scale fusion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from freescale import Conditioning, Denoiser, Level, denoise, make_schedule, normal
from freescale.backbones.flux2 import Flux2, grid_ids, text_ids
from freescale.enlarge import enlarge_latents
from freescale.flow_levels import FLOW_CLASS, empirical_mu, flow_sigmas
from freescale.frequency import gaussian_taps
from freescale.methods import Direct, FreeScale
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from freescale.vae.codec import codec_of
from stages.models.eight_bits import stored_in_8_bits
from tests.oracles import row_fusion as oracle
from tests.toys import flux2_network, goes_on, is_same, new_flux2_vae, snapshot

SCHEDULER = {
    "_class_name": FLOW_CLASS,
    "sigma_grid": "steps",
    "shift_line": "empirical",
    "use_dynamic_shifting": True,
}
FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
TEXT, GRID, WINDOW = 5, (8, 6), (4, 3)
CPU = torch.device("cpu")


def conditioning() -> Conditioning:
    return Conditioning(normal((1, TEXT, 24), 1), normal((1, TEXT, 24), 2))


@pytest.mark.parametrize(
    ("guidance", "cells"),
    [(3.0, (10, 14)), pytest.param(1.0, (8, 8), marks=pytest.mark.thorough)],
    ids=["base", "distilled"],
)
def test_latents_are_those_of_the_stock_pipeline(guidance: float, cells: tuple[int, int]) -> None:
    """The pipeline returns the VAE's latents, which the codec makes of ours."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    network, noise, text, vae = flux2_network(), normal((2, 4, *cells), 0), conditioning(), new_flux2_vae()
    pipeline: Any = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=network,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    size = 8 * cells[0], 8 * cells[1]
    assert text.negative_embeds is not None
    expected = pipeline(
        prompt_embeds=text.prompt_embeds.expand(2, -1, -1),
        negative_prompt_embeds=text.negative_embeds.expand(2, -1, -1),
        latents=pipeline._patchify_latents(noise),
        height=size[0],
        width=size[1],
        num_inference_steps=5,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    schedule = make_schedule(SCHEDULER, 5, tokens=cells[0] * cells[1] // 4)
    *_, last = denoise(Denoiser(network, text, guidance), noise, schedule, Direct(), Level(0, size, size), seed=0)
    torch.testing.assert_close(codec_of(vae).to_vae(last.latents), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(last.latents, noise, atol=0.1)


def test_noise_levels_depend_on_tokens_and_steps() -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    for tokens, steps in ((64, 4), (4096, 4), (4096, 50), (4300, 28), (4301, 28), (16384, 4)):
        assert empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), abs=1e-12)
    capped = flow_sigmas(SCHEDULER, 28, 65536, "cap")
    assert capped == flow_sigmas(SCHEDULER, 28, 4096)
    assert flow_sigmas(SCHEDULER, 28, 16384, "sqrt")[-1] > capped[-1]
    assert flow_sigmas(SCHEDULER, 4, 4096)[1] != flow_sigmas(SCHEDULER, 7, 4096)[2]


def test_latents_are_normalised_by_place_and_enlarged_as_the_vaes() -> None:
    codec, latents = codec_of(new_flux2_vae()), normal((2, 4, 6, 8), 0)
    there = codec.to_model(latents)
    torch.testing.assert_close(codec.to_vae(there), latents, atol=1e-6, rtol=1e-6)
    vae = new_flux2_vae()
    mean, variance = vae.bn.running_mean[2 * 4 + 1], vae.bn.running_var[2 * 4 + 1]  # channel 2, row 0, column 1
    torch.testing.assert_close(there[:, 2, 4, 3], (latents[:, 2, 4, 3] - mean) / (variance + 1e-4).sqrt())
    before, after = codec.to_model(enlarge_latents(latents, (12, 16))), enlarge_latents(there, (12, 16))
    assert not torch.allclose(before, after, atol=0.1)


def test_weights_in_8_bits_are_computed_with_in_16() -> None:
    """No linear layer of it has a bias, so that its first parameters are all of 8 bits."""
    network = copy.deepcopy(flux2_network()).bfloat16()
    text, schedule, noise = conditioning(), make_schedule(SCHEDULER, 3, tokens=16), normal((1, 4, 8, 8), 0)
    rows = Conditioning(text.prompt_embeds.bfloat16())
    with torch.no_grad():
        (whole,) = Denoiser(network, rows).passes(noise, 1, schedule, "positive")
        (stored,) = Denoiser(stored_in_8_bits(network), rows).passes(noise, 1, schedule, "positive")
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, whole, atol=0.1 * float(whole.abs().max()), rtol=0)


def double() -> Any:
    return copy.deepcopy(flux2_network()).double()


def called(network: Any, attn: Any, tokens: Tensor, fusion: Fusion | None) -> Tensor:
    """One attention module over text and image tokens; fused where asked, else as the network has it."""
    rotary = network.pos_embed(torch.cat([text_ids(TEXT, CPU), grid_ids(GRID, CPU)]))
    changes = [] if fusion is None else [Flux2(network).fused(fusion, (16, 12))]
    with torch.no_grad(), patched(network, changes):
        if hasattr(attn, "to_qkv_mlp_proj"):
            return attn(tokens, image_rotary_emb=rotary)
        image, text = attn(tokens[:, TEXT:], tokens[:, :TEXT], image_rotary_emb=rotary)
        return torch.cat([text, image], dim=1)


def rows_of(attn: Any, tokens: Tensor) -> list[Tensor]:
    """Queries, keys and values (tokens, heads, size), before they turn."""
    if hasattr(attn, "to_qkv_mlp_proj"):
        made = attn.to_qkv_mlp_proj(tokens)[:, :96].view(len(tokens), 3, 2, 16)
        return [attn.norm_q(made[:, 0]), attn.norm_k(made[:, 1]), made[:, 2]]
    found = []
    for own, of, norm in (("to_q", "add_q_proj", "q"), ("to_k", "add_k_proj", "k"), ("to_v", "add_v_proj", "")):
        text = getattr(attn, of)(tokens[:TEXT]).view(TEXT, 2, 16)
        image = getattr(attn, own)(tokens[TEXT:]).view(-1, 2, 16)
        if norm:
            text, image = getattr(attn, f"norm_added_{norm}")(text), getattr(attn, f"norm_{norm}")(image)
        found.append(torch.cat([text, image]))
    return found


def angles_of(ids: Tensor) -> Tensor:
    """Angles (tokens, size / 2) of positions, in float64."""
    turns = 2000.0 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    return (ids.double()[:, :, None] * turns).flatten(1)


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


@pytest.mark.parametrize("block", [pytest.param("double", marks=pytest.mark.thorough), "single"])
def test_fusion_is_the_formula(block: str) -> None:
    network = double()
    blocks = network.transformer_blocks if block == "double" else network.single_transformer_blocks
    attn, tokens = blocks[1].attn, normal((1, TEXT + 48, 32), 0).double()
    found, plain = called(network, attn, tokens, fusion()), called(network, attn, tokens, None)
    angles = angles_of(torch.cat([text_ids(TEXT, CPU), grid_ids(GRID, CPU)]))
    origins = [(top, left) for top in (0, 2, 4) for left in (0, 1, 2, 3)]
    with torch.no_grad():
        query, key, value = rows_of(attn, tokens[0])
        expected = oracle.fused(
            *((query, key, value), angles, list(range(TEXT, TEXT + 48)), GRID, WINDOW, origins),
            at=lambda r, c: angles_of(torch.tensor([[0, r, c, 0]]))[0],
            kernel=3,
        )
        if block == "double":
            expected = torch.cat([attn.to_add_out(expected[:TEXT]), attn.to_out[0](expected[TEXT:])])
        else:
            forward = attn.mlp_act_fn(attn.to_qkv_mlp_proj(tokens[0])[:, 96:])
            expected = attn.to_out(torch.cat([expected, forward], dim=1))
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)  # the network turns in float32
    torch.testing.assert_close(found[:, :TEXT], plain[:, :TEXT], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, TEXT:], plain[:, TEXT:], atol=1e-3)
    alike = called(network, attn, tokens, fusion(bands="global"))
    torch.testing.assert_close(alike, plain, atol=1e-5, rtol=1e-5)


def test_a_rule_of_positions_leaves_time_and_numbers_of_text_alone() -> None:
    network = flux2_network()
    ids = torch.cat([text_ids(TEXT, CPU), grid_ids(GRID, CPU)])
    with patched(network, [Flux2(network).positioned("pi", (16, 12), (8, 6))]):
        cosine, sine = network.pos_embed(ids)
    angles = angles_of(ids / torch.tensor([1, 2, 2, 1]))
    torch.testing.assert_close(cosine[:, ::2], angles.cos().float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sine[:, 1::2], angles.sin().float(), atol=1e-6, rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{"positions": "yarn", "temperature": "entropy"}, {}], ids=str)
def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind(changes: dict[str, Any]) -> None:
    denoiser, schedule = Denoiser(flux2_network(), conditioning(), 3.0), make_schedule(SCHEDULER, 4, tokens=48)
    reference, noise = normal((1, 4, 16, 12), 5), normal((1, 4, 16, 12), 6)
    before = snapshot(denoiser.network)
    level = Level(1, (128, 96), (64, 48), reference=reference, noise=noise)
    steps = goes_on(denoiser, FreeScale(**FLOW | changes), level, schedule)
    assert is_same(before, snapshot(denoiser.network))
    assert steps[-1].latents.isfinite().all()
