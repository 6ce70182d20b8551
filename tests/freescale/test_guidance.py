"""Classifier-free guidance around a real UNet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.schedule import make_schedule

SHAPE = (1, 4, 8, 10)


@pytest.fixture
def passes(sdxl_unet: Any, conditioning: Conditioning, scheduler_config: dict[str, Any]) -> Any:
    """Return noise predictions without guidance, (negative, positive), and what they are made of."""
    schedule, latents = make_schedule(scheduler_config, 10), 5.0 * normal(SHAPE, 0)

    def run(text: Any, **options: Any) -> torch.Tensor:
        with torch.no_grad():
            return Denoiser(sdxl_unet, text, **options)(latents, 3, schedule)

    negative = Conditioning(conditioning.negative_embeds, added=conditioning.negative_added)
    return run, run(negative, guidance_scale=0.0), run(conditioning, guidance_scale=0.0)


def test_guided_prediction_is_an_extrapolation(passes: Any, conditioning: Conditioning) -> None:
    run, negative, positive = passes
    assert not torch.equal(negative, positive)
    for scale in (1.5, 7.5):
        expected = negative + scale * (positive - negative)
        torch.testing.assert_close(run(conditioning, guidance_scale=scale), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_no_guidance_is_one_pass(passes: Any, conditioning: Conditioning, scale: float) -> None:
    run, _, positive = passes
    assert torch.equal(run(conditioning, guidance_scale=scale), positive)
    alone = dataclasses.replace(conditioning, negative_embeds=None)
    assert torch.equal(run(alone, guidance_scale=7.5), positive)


def test_two_passes_are_one(passes: Any, conditioning: Conditioning) -> None:
    run, *_ = passes
    for rescale in (0.0, 0.7):
        options = {"guidance_scale": 5.0, "guidance_rescale": rescale}
        split = run(conditioning, compute=Compute(split_guidance=True), **options)
        torch.testing.assert_close(split, run(conditioning, **options), atol=2e-5, rtol=0)


def test_rescaled_guidance_has_the_deviation_of_the_positive_pass(passes: Any, conditioning: Any) -> None:
    run, _, positive = passes
    rescaled = run(conditioning, guidance_scale=7.5, guidance_rescale=1.0)
    torch.testing.assert_close(rescaled.std(), positive.std())


def test_one_row_of_text_serves_every_row_of_latents(
    sdxl_unet: Any, conditioning: Conditioning, scheduler_config: dict[str, Any]
) -> None:
    schedule, latents = make_schedule(scheduler_config, 10), 5.0 * normal((2, *SHAPE[1:]), 0)
    denoiser = Denoiser(sdxl_unet, conditioning, 5.0)
    with torch.no_grad():
        both = denoiser(latents, 3, schedule)
        rows = torch.cat([denoiser(row, 3, schedule) for row in latents.split(1)])
    torch.testing.assert_close(both, rows, atol=2e-5, rtol=0)


def test_half_precision_unet_gives_float32(
    sdxl_unet: Any, conditioning: Conditioning, scheduler_config: dict[str, Any]
) -> None:
    import copy

    half = copy.deepcopy(sdxl_unet).to(torch.bfloat16)
    text = Conditioning(
        conditioning.prompt_embeds.bfloat16(), added={k: v.bfloat16() for k, v in conditioning.added.items()}
    )
    with torch.no_grad():
        noise_pred = Denoiser(half, text)(normal(SHAPE, 0), 3, make_schedule(scheduler_config, 10))
    assert noise_pred.dtype == torch.float32


def test_rescaled_guidance_as_diffusers(sdxl_unet: Any, conditioning: Conditioning) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    negative, positive = normal(SHAPE, 1), 2.0 * normal(SHAPE, 2)
    denoiser = Denoiser(sdxl_unet, conditioning, guidance_scale=7.0, guidance_rescale=0.7)
    expected = rescale_noise_cfg(negative + 7.0 * (positive - negative), positive, guidance_rescale=0.7)
    torch.testing.assert_close(denoiser.combine(negative, positive), expected, rtol=1e-5, atol=1e-5)


def test_guidance_within_an_interval(sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any) -> None:
    """From its first share of the steps on, and before its last; one pass elsewhere."""
    schedule = make_schedule(scheduler_config, 10)
    denoiser = Denoiser(sdxl_unet, conditioning, guidance_scale=5.0, guidance_interval=(0.2, 0.7))
    assert [i for i in range(10) if denoiser.is_guided(i, schedule)] == [2, 3, 4, 5, 6]
    plain, latents = Denoiser(sdxl_unet, conditioning, guidance_scale=0.0), normal(SHAPE, 0)
    with torch.no_grad():
        assert torch.equal(denoiser(latents, 7, schedule), plain(latents, 7, schedule))
        assert not torch.equal(denoiser(latents, 6, schedule), plain(latents, 6, schedule))
