"""FLUX in miniature, with random weights, against the stock pipeline: the latents after all steps."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, denoise, make_schedule, normal
from freescale.backbones import BACKBONES, backbone_of
from freescale.backbones.flux import image_ids
from freescale.backbones.joint import pack, unpack
from freescale.flow_levels import FLOW_CLASS
from freescale.methods import Direct
from tests.toys import flux_network

if TYPE_CHECKING:
    from torch import Tensor

SHIFTING = {"use_dynamic_shifting": True}
SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps"}


def text(side: str) -> tuple[Tensor, Tensor]:
    """Embeddings (1, T, D) and the pooled row of one side."""
    return normal((1, 6, 24), 1, side), normal((1, 20), 2, side)


def stock(network: Any, latents: Tensor, config: dict[str, Any], steps: int, **options: Any) -> Tensor:
    """The latents that the stock pipeline makes of these first ones."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler: Any = FlowMatchEulerDiscreteScheduler(**config)
    parts: Any = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(scheduler=scheduler, transformer=network, **parts)
    pipe.set_progress_bar_config(disable=True)
    rows = latents.shape[0]
    (embeds, pooled), (negative, negative_pooled) = text("positive"), text("negative")
    out = pipe(
        prompt_embeds=embeds.expand(rows, -1, -1),
        pooled_prompt_embeds=pooled.expand(rows, -1),
        negative_prompt_embeds=negative.expand(rows, -1, -1),
        negative_pooled_prompt_embeds=negative_pooled.expand(rows, -1),
        latents=pack(latents),
        height=8 * latents.shape[2],
        width=8 * latents.shape[3],
        num_inference_steps=steps,
        output_type="latent",
        **options,
    ).images
    return unpack(out, (latents.shape[2], latents.shape[3]))


def ours(
    network: Any, noise: Tensor, config: dict[str, Any], steps: int, true: float, guidance: float | None
) -> Tensor:
    """The latents of plain sampling by the kernel."""
    (embeds, pooled), (negative, negative_pooled) = text("positive"), text("negative")
    added, negative_added = {"pooled_projections": pooled}, {"pooled_projections": negative_pooled}
    conditioning = Conditioning(embeds, negative, added, negative_added, guidance=guidance)
    cells = noise.shape[2], noise.shape[3]
    schedule = make_schedule(SCHEDULER | config, steps, tokens=cells[0] * cells[1] // 4)
    size = 8 * cells[0], 8 * cells[1]
    denoiser = Denoiser(network, conditioning, true)
    *_, last = denoise(denoiser, noise * schedule.init_sigma, schedule, Direct(), Level(0, size, size), seed=0)
    return last.latents


@pytest.mark.parametrize(
    ("embedded", "true", "config", "cells"),
    [
        (True, 1.0, SHIFTING, (10, 14)),
        (True, 3.0, SHIFTING, (8, 8)),
        (False, 1.0, {}, (8, 8)),
        (False, 3.0, {"shift": 3.0}, (6, 10)),
    ],
    ids=["dev", "dev-true-cfg", "schnell", "true-cfg"],
)
def test_latents_are_those_of_the_stock_pipeline(
    embedded: bool, true: float, config: dict[str, Any], cells: tuple[int, int]
) -> None:
    network, noise = flux_network(embedded), normal((2, 4, *cells), 0)
    expected = stock(network, noise, config, 5, guidance_scale=3.5, true_cfg_scale=true)
    found = ours(network, noise, config, 5, true, 3.5 if embedded else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, noise, atol=0.1)


def test_time_is_rounded_as_the_stock_pipeline_does() -> None:
    """In bfloat16, where 877.4 becomes 876: one call, to the bit."""
    network = copy.deepcopy(flux_network(True)).to(torch.bfloat16)
    latents = normal((1, 4, 8, 8), 0).to(torch.bfloat16)
    embeds, pooled = (x.to(torch.bfloat16) for x in text("positive"))
    rows = Conditioning(embeds, added={"pooled_projections": pooled}, guidance=3.5)
    schedule = make_schedule(SCHEDULER | SHIFTING, 7, tokens=16)
    with torch.no_grad():
        for i, timestep in enumerate(schedule.timesteps):
            (found,) = Denoiser(network, rows).passes(latents, i, schedule, "positive")
            expected = network(
                hidden_states=pack(latents),
                timestep=torch.tensor(timestep).expand(1).to(torch.bfloat16) / 1000,
                guidance=torch.full([1], 3.5),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(6, 3),
                img_ids=image_ids((4, 4), torch.device("cpu")),
            ).sample
            assert torch.equal(found, unpack(expected, (8, 8)).float())


def test_packing_is_that_of_the_stock_pipeline() -> None:
    from diffusers import FluxPipeline

    latents = normal((2, 4, 6, 10), 0)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(tokens, (6, 10)), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids((3, 5), torch.device("cpu")), ids)


def test_half_a_patch_and_a_wrong_guidance_are_refused() -> None:
    embeds, pooled = text("positive")
    schedule = make_schedule(SCHEDULER, 2)
    for embedded, guidance, cells, message in (
        (False, None, (6, 7), "latents are 6 x 7 cells, allowed: multiples of 2"),
        (False, 3.5, (6, 6), "guidance is 3.5, allowed: None with this network"),
        (True, None, (6, 6), "guidance is None, allowed: a number with this network"),
    ):
        rows = Conditioning(embeds, added={"pooled_projections": pooled}, guidance=guidance)
        with pytest.raises(ValueError, match=message):
            Denoiser(flux_network(embedded), rows)(normal((1, 4, *cells), 0), 0, schedule)


def test_an_unknown_network_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"the network is a Linear, allowed: UNet2D.*, FluxTransformer2DModel"):
        backbone_of(torch.nn.Linear(1, 1))
    assert {BACKBONES[name].kind for name in BACKBONES} == {"unet", "flow"}
