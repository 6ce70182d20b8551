"""Direct inference is the stock pipeline; FreeScale does what its paper says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from freescale.cascade import Level
from freescale.forward_process import normal, renoise
from freescale.grid_attention import GridAttention
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import Direct, FreeScale, Method
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.scale_fusion import Fusion
from freescale.schedule import make_schedule
from freescale.unet_patches import patched, spatial_self_attentions
from tests.toys import BASE, TARGET, level_at, render


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_direct_render_is_the_stock_pipeline(
    sdxl_pipeline: Any, denoiser: Denoiser, conditioning: Conditioning, scheduler_config: Any
) -> None:
    """At the training size FreeScale without FreeU is the same, since it has one level then."""
    schedule, shape = make_schedule(scheduler_config, 4), (1, 4, 8, 10)
    for rescale in (0.0, 0.7):
        stock = sdxl_pipeline(
            prompt_embeds=conditioning.prompt_embeds,
            pooled_prompt_embeds=conditioning.added["text_embeds"],
            negative_prompt_embeds=conditioning.negative_embeds,
            negative_pooled_prompt_embeds=conditioning.negative_added["text_embeds"],
            latents=normal(shape, 7, "init_noise", 0),
            height=64,
            width=80,
            original_size=(64, 64),
            target_size=(64, 64),
            num_inference_steps=4,
            guidance_scale=4.0,
            guidance_rescale=rescale,
            output_type="latent",
        ).images
        ours = dataclasses.replace(denoiser, guidance_rescale=rescale)
        direct = render(ours, Direct(), level_at(0), schedule)
        # sums in another order, and sigma tables in float64: 2e-6 of the signal
        torch.testing.assert_close(direct, stock, atol=1e-4, rtol=1e-4)
        assert torch.equal(render(ours, FreeScale(freeu=None), level_at(0), schedule), direct)


def test_base_level_has_freeu_only(denoiser: Denoiser, scheduler_config: Any) -> None:
    schedule = make_schedule(scheduler_config, 4)
    free = render(denoiser, FreeScale(), level_at(0), schedule)
    direct = render(denoiser, Direct(freeu=(1.1, 1.2, 0.6, 0.4)), level_at(0), schedule)
    assert torch.equal(free, direct)
    assert not torch.equal(free, render(denoiser, Direct(), level_at(0), schedule))
    assert FreeScale(fast=True, freeu=None).at_base() == FreeScale(freeu=None)
    assert FreeScale(fast=True, restart=0.5).at_start() == FreeScale(restart=0.5)


@pytest.mark.parametrize("fast", [False, True])
def test_scale_that_rounds_to_one_is_the_stock_unet(sdxl_unet: Any, scheduler_config: Any, fast: bool) -> None:
    method = FreeScale(freeu=None, fast=fast)
    moment = Moment(level_at(1, (88, 112)), 2, make_schedule(scheduler_config, 5), 0)
    assert moment.level.factor < 1.5
    assert list(method.patches(moment)) == []


def test_what_is_on_when(sdxl_unet: Any, scheduler_config: Any) -> None:
    schedule = make_schedule(scheduler_config, 50)
    for step, is_dilated in [(15, True), (34, True), (35, False), (49, False)]:
        with patched(sdxl_unet, FreeScale().patches(Moment(level_at(1), step, schedule, 0))):
            wrapped = [p for p in sdxl_unet.attn_processors.values() if isinstance(p, GridAttention)]
            fused = [p for p in wrapped if isinstance(p.asked, Fusion)]
            assert len(fused) == len(spatial_self_attentions(sdxl_unet)) == 17
            dilated = sum(getattr(module, "dilation", 1) == (2, 2) for module in sdxl_unet.modules())
            assert dilated == (9 if is_dilated else 0)
    for off in (FreeScale(fusion=False, dilate=False), FreeScale(fusion=False, dilation=(0.0, 0.0))):
        assert list(off.patches(Moment(level_at(1), 20, schedule, 0))) == []  # FreeU stands beside the method


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_shares_mean_the_same_for_every_number_of_steps(scheduler_config: Any, steps: int) -> None:
    schedule, method = make_schedule(scheduler_config, steps), FreeScale()
    assert schedule.fraction(method.restart_step(schedule)) == pytest.approx(0.3)
    assert schedule.fraction(method.detail_step(schedule)) == pytest.approx(0.7)


def test_restart_at_either_end(denoiser: Denoiser, scheduler_config: Any) -> None:
    schedule, level = make_schedule(scheduler_config, 4), level_at(1)
    assert FreeScale(restart=0.0).restart_step(schedule) == 0
    last = FreeScale(restart=0.75)
    assert last.restart_step(schedule) == 3
    start = last.start((1, 4, 17, 20), Moment(level, 3, schedule, 7))
    assert torch.equal(start, renoise(level.reference, level.noise, schedule.sigmas[3]))
    assert render(denoiser, last, level, schedule).isfinite().all()


class TestAnchor:
    """The pull towards the reference."""

    def test_zero_exponent_replaces_the_latents(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        """So the result is the last step from the noised reference."""
        schedule, level = make_schedule(scheduler_config, 3), level_at(1)
        method = FreeScale(detail_scale=0.0)
        (step,) = denoise(
            denoiser,
            renoise(level.reference, level.noise, schedule.sigmas[2]),
            schedule,
            method,
            level,
            seed=7,
            start=2,
        )
        output = render(denoiser, method, level, schedule)
        torch.testing.assert_close(output, step.latents, atol=1e-5, rtol=1e-5)

    @pytest.mark.thorough
    def test_large_exponent_lets_go(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        schedule, level = make_schedule(scheduler_config, 3), level_at(1)
        free = render(denoiser, FreeScale(lerp=False), level, schedule)
        assert torch.equal(render(denoiser, FreeScale(detail_scale=math.inf), level, schedule), free)
        assert not torch.equal(render(denoiser, FreeScale(), level, schedule), free)

    def test_constant_map_is_its_scalar(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        schedule = make_schedule(scheduler_config, 3)
        plain = render(denoiser, FreeScale(detail_scale=3.0), level_at(1), schedule)
        spread = level_at(1, detail_map=torch.full((1, 1, 17, 20), 3.0))
        assert torch.equal(render(denoiser, FreeScale(), spread, schedule), plain)

    def test_map_decides_place_by_place(self, scheduler_config: Any) -> None:
        schedule = make_schedule(scheduler_config, 50)
        exponents = torch.full((1, 1, 17, 20), math.inf)
        exponents[..., :10] = 0.0
        level = level_at(1, detail_map=exponents)
        moment = Moment(level, 30, schedule, 7)
        latents = normal((1, 4, 17, 20), 1)
        blended = FreeScale().blend(latents, moment)
        anchor = renoise(level.reference, level.noise, moment.sigma)
        assert torch.equal(blended[..., :10], anchor[..., :10])
        assert torch.equal(blended[..., 10:], latents[..., 10:])

    def test_weight_is_the_cosine_to_the_exponent(self, scheduler_config: Any) -> None:
        moment = Moment(level_at(1), 30, make_schedule(scheduler_config, 50), 7)
        latents = normal((1, 4, 17, 20), 1).double()
        anchor = moment.level.reference.double() + moment.sigma * moment.level.noise.double()
        weight = (0.5 * (1 + math.cos(math.pi * (1000 - 381) / 1000))) ** 2
        expected = (1 - weight) * latents + weight * anchor
        torch.testing.assert_close(FreeScale().blend(latents, moment), expected, atol=1e-6, rtol=0)


def test_jitter_follows_from_seed_level_step_and_layer(scheduler_config: Any) -> None:
    schedule, grid = make_schedule(scheduler_config, 5), (40, 56)

    def origins(step: int = 2, seed: int = 7, index: int = 1, name: str = "a", **options: Any) -> Any:
        moment = Moment(level_at(index), step, schedule, seed)
        return FreeScale(**options).fusion_at(moment).windows(name, grid).origins

    one = origins()
    assert origins() == one
    for other in (origins(step=3), origins(seed=8), origins(index=2), origins(name="b")):
        assert other != one
    assert origins(name="b", jitter_scope="step") == origins(jitter_scope="step")
    assert origins(jitter=False) == origins(jitter=False, seed=8, step=3)


@pytest.mark.parametrize(
    ("size", "kernel", "length"),
    [
        ((2048, 2048), "scale", 3),
        ((4096, 4096), "scale", 7),
        ((8192, 8192), "scale", 15),
        ((4096, 2048), "scale", 7),
        ((2048, 2048), "paper", 7),
        ((4096, 4096), "paper", 31),
        ((8192, 8192), "paper", 127),
        ((2048, 2048), 9, 9),
    ],
)
def test_kernels_of_release_and_paper(size: tuple[int, int], kernel: Any, length: int) -> None:
    assert FreeScale(blur_kernel=kernel).kernel_at(Level(1, size, (1024, 1024))) == length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restart": 1.0}, "restart is 1.0, allowed: 0 to below 1"),
        ({"dilation": (0.7, 0.3)}, "dilation is"),
        ({"detail_scale": -1.0}, "detail_scale is -1.0"),
        ({"blur_kernel": 4}, "blur kernel is 4, allowed: odd"),
        ({"blur_kernel": "wide"}, "blur_kernel is 'wide'"),
        ({"blur_sigma": 0.0}, "blur sigma"),
        ({"border": "wrap"}, "border is 'wrap', allowed: clamp, sink, mask"),
        ({"bands": "both"}, "bands is 'both'"),
        ({"upsample": "nearest"}, "upsample is 'nearest'"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreeScale(**options)


def test_levels_above_the_first_need_their_reference(scheduler_config: Any) -> None:
    moment = Moment(Level(1, TARGET, BASE), 0, make_schedule(scheduler_config, 5), 0)
    with pytest.raises(ValueError, match="level 1 lacks"):
        Method().start((1, 4, 17, 20), moment)


@pytest.fixture(scope="module")
def tall() -> Level:
    """A tall picture, 3.4 x 2.1 times a base whose windows are large enough for jitter to leave the grid."""
    return dataclasses.replace(level_at(1, (440, 136)), base_size=(128, 64))


@pytest.fixture(scope="module")
def plain_tall(tall: Level, sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any) -> Tensor:
    """FreeScale as it comes."""
    return render(Denoiser(sdxl_unet, conditioning, 4.0), FreeScale(), tall, make_schedule(scheduler_config, 2))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        {"fast": True},
        {"border": "sink"},
        {"border": "mask"},
        {"channel_blur": False},
        {"bands": "swapped"},
        {"bands": "local"},
        {"dilated_layers": "all_up"},
        {"dilation_rule": "axis"},
        {"blur_border": "reflect"},
    ],
    ids=str,
)
def test_every_switch_works_and_matters(
    options: Any, tall: Level, plain_tall: Tensor, denoiser: Denoiser, scheduler_config: Any
) -> None:
    other = render(denoiser, FreeScale(**options), tall, make_schedule(scheduler_config, 2))
    assert other.isfinite().all()
    assert (other - plain_tall).abs().max() > 1e-4


@pytest.mark.thorough
def test_video(video_unet: Any, scheduler_config: Any) -> None:
    """(B, C, F, h, w): fused frame by frame, the stock UNet at scale 1, resumed to the same bits."""
    text = Conditioning(normal((1, 5, 32), 1), normal((1, 5, 32), 2))
    denoiser, schedule = Denoiser(video_unet, text, 4.0), make_schedule(scheduler_config, 4)
    method, level = FreeScale(freeu=None), level_at(1, frames=[3])
    start = method.start((1, 4, 3, 17, 20), Moment(level, 1, schedule, 7))
    steps = list(denoise(denoiser, start, schedule, method, level, seed=7, start=1))
    assert steps[-1].latents.shape == (1, 4, 3, 17, 20)
    resumed = list(denoise(denoiser, steps[0].latents, schedule, method, level, seed=7, start=2))
    assert torch.equal(resumed[-1].latents, steps[-1].latents)
    plain = dataclasses.replace(method, fusion=False, dilate=False)
    stock = list(denoise(denoiser, start, schedule, plain, level, seed=7, start=1))
    assert not torch.equal(stock[-1].latents, steps[-1].latents)
    same = dataclasses.replace(level, base_size=TARGET)
    small = list(denoise(denoiser, start, schedule, method, same, seed=7, start=1))
    assert torch.equal(small[-1].latents, stock[-1].latents)
    spread = dataclasses.replace(level, detail_map=torch.full((1, 1, 17, 20), 2.0))
    mapped = list(denoise(denoiser, start, schedule, method, spread, seed=7, start=1))
    assert torch.equal(mapped[-1].latents, steps[-1].latents)
