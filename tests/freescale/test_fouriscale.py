"""FouriScale: its masks, its buckets, its three branches."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from freescale.cascade import Level, base_size_for
from freescale.compute import Compute
from freescale.dilation import convs_under
from freescale.forward_process import normal
from freescale.frequency import fourier_filter, low_pass_mask
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import Direct, FouriScale
from freescale.methods.fouriscale.buckets import BUCKETS, bucket_for, training_side, whole_scale
from freescale.methods.fouriscale.fourier_dilation import FourierDilation, fourier_dilate, share_attention_maps
from freescale.methods.fouriscale.method import SD, SDXL
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.schedule import make_schedule
from freescale.unet_patches import dilate_convs, patched, spatial_self_attentions
from tests.freescale.test_unet_patches import is_same, snapshot
from tests.oracles import fourier as oracle
from tests.toys import goes_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale.methods import Method
    from freescale.schedule import Schedule

SPREADS, FLOORS = st.floats(1.0, 8.0), st.sampled_from([0.0, 0.3, 0.6, 1.0])


def mask_of(size: tuple[int, int], spread: float, floor: float, is_weak: bool) -> Tensor:
    return low_pass_mask(size, spread, floor, is_weak, torch.float64, torch.device("cpu"))


class TestLowPass:
    """The masks and the filter."""

    @given(size=st.tuples(st.integers(1, 7), st.integers(1, 7)), spread=SPREADS, floor=FLOORS, is_weak=st.booleans())
    def test_filters_every_frequency_by_its_mask(
        self, size: tuple[int, int], spread: float, floor: float, is_weak: bool
    ) -> None:
        x = normal(size, 1).double()
        fast = fourier_filter(x, mask_of(size, spread, floor, is_weak))
        slow = oracle.low_pass(x, spread, floor, is_weak)
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)

    @given(
        halves=st.tuples(st.integers(1, 40), st.integers(1, 40)), spread=SPREADS, floor=FLOORS, is_weak=st.booleans()
    )
    def test_is_the_real_part_of_the_released_filter(
        self, halves: tuple[int, int], spread: float, floor: float, is_weak: bool
    ) -> None:
        """On the shifted spectrum of an even size, with half profiles mirrored about the wrong place."""
        h, w = 2 * halves[0], 2 * halves[1]
        x = normal((2, h, w), 1).double()
        rows, columns = (torch.tensor(oracle.shifted_half(n, spread, floor, is_weak), dtype=x.dtype) for n in (h, w))
        spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1)) * torch.outer(rows, columns)
        released = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
        fast = fourier_filter(x, mask_of((h, w), spread, floor, is_weak))
        torch.testing.assert_close(fast, released, atol=1e-12, rtol=0)

    @given(
        size=st.tuples(st.integers(1, 65), st.integers(1, 65)),
        spread=st.floats(0.5, 8.0),
        floor=FLOORS,
        is_weak=st.booleans(),
    )
    def test_masks_keep_the_mean_and_amplify_nothing(
        self, size: tuple[int, int], spread: float, floor: float, is_weak: bool
    ) -> None:
        mask = mask_of(size, spread, floor, is_weak)
        assert mask.shape == (size[0], size[1] // 2 + 1)
        assert float(mask[0, 0]) == 1.0
        assert floor**2 - 1e-12 <= float(mask.min())
        assert float(mask.max()) <= 1.0
        x = normal((1, 3, *size), 2).double()
        filtered = fourier_filter(x, mask)
        assert filtered.shape == x.shape
        torch.testing.assert_close(filtered.mean((-2, -1)), x.mean((-2, -1)), atol=1e-12, rtol=0)
        if floor == 1.0 or spread <= 1.0:
            torch.testing.assert_close(filtered, x, atol=1e-12, rtol=0)

    def test_bands_of_a_long_axis(self) -> None:
        """64 points, spread 4: frequencies to 9 pass; the strong mask is at its floor from 18, the weak at the end."""
        strong, weak = (mask_of((64, 1), 4.0, 0.6, is_weak)[:, 0] for is_weak in (False, True))
        for mask in (strong, weak):
            assert mask[:10].tolist() == [1.0] * 10
            assert bool((mask[10:33].diff() <= 0).all())
            torch.testing.assert_close(mask[1:], mask[1:].flip(0))
        assert float(strong[18]) == pytest.approx(0.6)
        assert float(weak[31]) > 0.62
        assert strong[20] < weak[20] < 1.0

    def test_half_precision_is_filtered_in_float32(self) -> None:
        x = normal((1, 2, 9, 12), 3)
        mask = low_pass_mask((9, 12), 2.0, 0.6, False, torch.float32, x.device)
        low = fourier_filter(x.bfloat16(), mask)
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, fourier_filter(x.bfloat16().float(), mask).bfloat16())


class TestBuckets:
    """The size that a target grows from."""

    def test_forty(self) -> None:
        assert len(set(BUCKETS)) == len(BUCKETS) == 40
        assert [h / w for h, w in BUCKETS] == sorted(h / w for h, w in BUCKETS)
        assert {(1024, 1024), (704, 1344), (512, 2048), (2048, 512)} <= set(BUCKETS)

    @pytest.mark.parametrize(
        ("size", "bucket", "scale"),
        [
            ((2048, 2048), (1024, 1024), 2),
            ((4096, 4096), (1024, 1024), 4),
            ((8192, 8192), (1024, 1024), 8),
            ((3072, 3072), (1024, 1024), 3),
            ((2048, 4096), (704, 1408), 3),
            ((4096, 2048), (1408, 704), 3),
            ((2560, 2560), (896, 1088), 3),
            ((1536, 1536), (832, 1152), 2),
            ((1024, 2048), (832, 1152), 2),
            ((1024, 3072), (640, 1536), 2),
            ((2048, 3072), (832, 1152), 3),
            ((1536, 2560), (768, 1280), 2),
        ],
    )
    def test_released_rule(self, size: tuple[int, int], bucket: tuple[int, int], scale: int) -> None:
        found = bucket_for(size, base_size_for(size, (1024, 1024)), "released")
        assert (found, whole_scale(size, found)) == (bucket, scale)

    @pytest.mark.parametrize(
        ("size", "bucket", "scale"),
        [
            ((2048, 2048), (1024, 1024), 2),
            ((2560, 2560), (1024, 1024), 3),
            ((1536, 1536), (1024, 1024), 2),
            ((1024, 2048), (704, 1408), 2),
            ((2048, 3072), (832, 1216), 3),
            ((8192, 1024), (2048, 512), 4),
        ],
    )
    def test_nearest_rule(self, size: tuple[int, int], bucket: tuple[int, int], scale: int) -> None:
        found = bucket_for(size, base_size_for(size, (1024, 1024)))
        assert (found, whole_scale(size, found)) == (bucket, scale)

    @given(
        cells=st.tuples(st.integers(8, 512), st.integers(8, 512)).filter(lambda c: max(c) <= 8 * min(c)),
        native=st.sampled_from([128, 256, 512, 1024]),
    )
    def test_every_size_has_one(self, cells: tuple[int, int], native: int) -> None:
        size = (8 * cells[0], 8 * cells[1])
        base = base_size_for(size, (native, native))
        bucket = bucket_for(size, base)
        if size == base:
            assert bucket == size
        else:
            assert bucket in {(h * native // 1024, w * native // 1024) for h, w in BUCKETS}
            assert training_side(base) == native

    def test_long_pictures_have_none_by_the_released_rule(self) -> None:
        with pytest.raises(ValueError, match="bucket_rule is 'released' at 1024x8192, allowed: sizes up to four times"):
            bucket_for((8192, 1024), (2896, 360), "released")


@pytest.mark.parametrize(
    ("kind", "scale", "strong", "weak"),
    [
        (SDXL, 2, {0: 2, 35: 1}, {0: 2, 28: 1}),
        (SDXL, 3, {0: 3, 28: 2, 35: 1}, {0: 2, 32: 1}),
        (SDXL, 4, {0: 4, 25: 3, 30: 2, 35: 1}, {0: 3, 25: 2, 33: 1}),
        (SDXL, 8, {0: 8, 23: 7, 25: 6, 27: 5, 29: 4, 31: 3, 33: 2, 35: 1}, {0: 6, 22: 5, 25: 4, 28: 3, 31: 2, 34: 1}),
        (SD, 2, {0: 2, 30: 1}, {0: 2, 30: 1}),
        (SD, 4, {0: 4, 25: 3, 30: 2, 35: 1}, {0: 4, 25: 3, 30: 2, 35: 1}),
    ],
)
def test_dilation_falls_as_released(kind: Any, scale: int, strong: dict[int, int], weak: dict[int, int]) -> None:
    unet, schedule, method = nn.Module(), make_schedule({}, 50), FouriScale()
    unet.down_blocks = nn.ModuleList([nn.Identity()] * (3 if kind is SDXL else 4))
    setting = method.setting_for(unet, scale)
    assert (setting.layers, setting.floor, setting.weak_divisor) == (kind.layers, kind.floor, kind.weak_divisor)
    base, now, now_weak = (1024, 1024), 0, 0
    for step in range(50):
        now, now_weak = strong.get(step, now), weak.get(step, now_weak)
        dilation = method.dilation_at(setting, scale, schedule, step)
        treatment = method.treatment(setting, dilation, (1024 * scale, 1024 * scale), base, 1)
        assert math.ceil(treatment.dilation) == now
        assert treatment.weak_dilation == now_weak


def test_layers_resolve(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    for unet, setting, count in ((full_sdxl_unet, SDXL, 21), (full_sd_unet, SD, 34)):
        names = [name for layer in setting.layers for name in convs_under(unet, layer)]
        assert len(names) == len(set(names)) == count
        assert all(unet.get_submodule(name).kernel_size == (3, 3) for name in names)
    assert not any("up_blocks.1.upsamplers" in n or "downsamplers" in n for layer in SDXL.layers
                   for n in convs_under(full_sdxl_unet, layer))  # fmt: skip


class TestFourierDilation:
    """One convolution of a step."""

    @given(
        size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
        dilation=st.floats(1.0, 3.0),
        canvas=st.tuples(st.floats(1.0, 1.5), st.floats(1.0, 1.5)),
        stride=st.integers(1, 2),
    )
    def test_pads_filters_cuts_and_convolves(
        self, size: tuple[int, int], dilation: float, canvas: tuple[float, float], stride: int
    ) -> None:
        conv = nn.Conv2d(1, 2, 3, stride, 1).double().requires_grad_(False)
        x = normal((3, 1, *size), 1).double()
        output = FourierDilation(dilation, 1.0, 0.3, canvas, 1)(conv, x)
        assert output.shape == conv(x).shape
        padded = [math.ceil(n * c - 1e-6) for n, c in zip(size, canvas, strict=True)]
        for row, factor in ((0, math.ceil(dilation - 1e-9)), (2, 1)):
            image = torch.zeros(padded, dtype=torch.float64)
            image[: size[0], : size[1]] = x[row, 0]
            low = oracle.low_pass(image, max(dilation / stride, 1.0), 0.3, row == 2)[: size[0], : size[1]]
            slow = nn.functional.conv2d(low[None, None], conv.weight, conv.bias, stride, factor, factor)
            torch.testing.assert_close(output[row : row + 1], slow, atol=1e-12, rtol=0)

    def test_upsamplers_are_not_filtered(self) -> None:
        tree = nn.ModuleDict({"upsamplers": nn.ModuleDict({"0": nn.Conv2d(1, 1, 3, padding=1)})})
        holder = nn.ModuleDict({"up": tree, "conv": tree["upsamplers"]["0"]}).requires_grad_(False)
        x, step = normal((2, 1, 8, 8), 1), FourierDilation(2.0, 2.0, 0.0, (1.0, 1.0))
        plain = nn.functional.conv2d(x, holder["conv"].weight, holder["conv"].bias, padding=2, dilation=2)
        with patched(holder, [fourier_dilate(["up.upsamplers.0"], step)]):
            assert torch.equal(holder["up"]["upsamplers"]["0"](x), plain)
        assert not torch.equal(step(holder["conv"], x), plain)

    def test_without_weak_rows_all_are_strong(self) -> None:
        conv, x = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False), normal((3, 2, 8, 8), 1)
        step = FourierDilation(2.5, 2.0, 0.6, (1.2, 1.0))
        three = dataclasses.replace(step, weak_rows=1)(conv, x)
        torch.testing.assert_close(step(conv, x)[:2], three[:2], atol=1e-6, rtol=0)
        assert (step(conv, x)[2] - three[2]).abs().max() > 1e-3


class TestSharedAttention:
    """The last rows attend as those before them."""

    def test_is_attention_with_the_maps_of_the_rows_before(self, sdxl_unet: Any) -> None:
        _, attention = spatial_self_attentions(sdxl_unet)[3]
        x = normal((3, 7, attention.to_q.in_features), 1)
        with torch.no_grad():
            plain = attention(x)
            with patched(sdxl_unet, [share_attention_maps(1)]):
                shared = attention(x)
            heads = [layer(x).double() for layer in (attention.to_q, attention.to_k, attention.to_v)]
            mixed = oracle.attention(heads[0][1], heads[1][1], heads[2][2], attention.heads)
            expected = attention.to_out[0](mixed.float())
        torch.testing.assert_close(shared[:2], plain[:2])
        torch.testing.assert_close(shared[2], expected, atol=1e-5, rtol=0)
        assert (shared[2] - plain[2]).abs().max() > 1e-3

    def test_identical_rows_stay_identical(self, sdxl_unet: Any) -> None:
        _, attention = spatial_self_attentions(sdxl_unet)[0]
        x = normal((4, 6, attention.to_q.in_features), 1)
        x = torch.cat([x, x[2:]])
        with torch.no_grad(), patched(sdxl_unet, [share_attention_maps(2)]):
            shared = attention(x)
        assert torch.equal(shared[2:4], shared[4:])
        torch.testing.assert_close(shared, attention(x))

    def test_queries_and_keys_are_projected_once(self, sdxl_unet: Any) -> None:
        _, attention = spatial_self_attentions(sdxl_unet)[0]
        rows: list[int] = []
        handles = [
            layer.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        ]
        try:
            with torch.no_grad(), patched(sdxl_unet, [share_attention_maps(1)]):
                attention(normal((3, 6, attention.to_q.in_features), 1))
        finally:
            for handle in handles:
                handle.remove()
        assert rows == [2, 2, 3]

    def test_fused_projections_are_refused(self, sdxl_unet: Any) -> None:
        _, attention = spatial_self_attentions(sdxl_unet)[2]
        before, sharing = snapshot(sdxl_unet), share_attention_maps(1)
        attention.fused_projections = True
        try:
            with pytest.raises(ValueError, match="has fused projections"), patched(sdxl_unet, [sharing]):
                pass
        finally:
            attention.fused_projections = False
        assert is_same(before, snapshot(sdxl_unet))


def render(denoiser: Denoiser, method: Method, level: Level, schedule: Schedule, cuts: Sequence[int] = ()) -> Tensor:
    """All steps from noise, the loop left and entered again at each of `cuts`."""
    latents = method.start((1, 4, *level.latent_hw), Moment(level, 0, schedule, 7))
    for first, stop in pairwise([0, *cuts, len(schedule)]):
        for step in denoise(denoiser, latents, schedule, method, level, seed=7, start=first, stop=stop):
            latents = step.latents.clone()
    return latents


LARGE = Level(0, (168, 200), (64, 80))  # odd sides on the way down, and a canvas larger than the picture


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Any) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


@pytest.fixture(scope="module")
def sd_denoiser() -> Denoiser:
    """A UNet with Stable Diffusion's topology and random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()
    return Denoiser(unet, Conditioning(normal((1, 5, 8), 1), normal((1, 5, 8), 2)), 4.0)


class TestBranches:
    """Negative strong, positive strong, positive weak."""

    def predict(
        self, denoiser: Denoiser, method: Method, config: Any, step: int = 2, level: Level = LARGE, batch: int = 1
    ) -> Tensor:
        moment = Moment(level, step, make_schedule(config, 10), 7)
        with torch.no_grad():
            return method.predict(denoiser, 5.0 * normal((batch, 4, *level.latent_hw), 1), moment)

    def test_guidance_leads_from_strong_negative_to_weak_positive(
        self, denoiser: Denoiser, scheduler_config: Any
    ) -> None:
        """Also in two calls, for two pictures at once, and amplified up to the fall."""
        unet, schedule = denoiser.network, make_schedule(scheduler_config, 10)
        latents = 5.0 * normal((1, 4, *LARGE.latent_hw), 1)
        method = FouriScale()
        base = method.base_for(unet, LARGE)
        scale = whole_scale(LARGE.size, base)
        assert (base, scale) == ((56, 68), 3)
        names = [name for layer in SDXL.layers for name in convs_under(unet, layer)]
        canvas = (3 * 56 / 168, 3 * 68 / 200)
        strong = fourier_dilate(names, FourierDilation(3.0, 2.0, 0.6, canvas))
        both = fourier_dilate(names, FourierDilation(3.0, 2.0, 0.6, canvas, 1))
        with torch.no_grad():
            with patched(unet, [strong]):
                (negative,) = denoiser.passes(latents, 2, schedule, "negative")
            with patched(unet, [both, share_attention_maps(1)]):
                positive, weak = denoiser.passes(latents, 2, schedule, "positive", "positive")
        assert (positive - weak).abs().max() > 1e-3
        for changes in ({}, {"compute": Compute(split_guidance=True)}):
            output = self.predict(dataclasses.replace(denoiser, **changes), method, scheduler_config)
            torch.testing.assert_close(output, negative + 4.0 * (weak - negative), atol=1e-4, rtol=1e-4)
        strongly = self.predict(denoiser, FouriScale(amplify=2.4), scheduler_config)
        torch.testing.assert_close(strongly, negative + 9.6 * (weak - negative), atol=1e-4, rtol=1e-4)
        later = [self.predict(denoiser, FouriScale(amplify=a), scheduler_config, 4) for a in (1.0, 2.4)]
        assert torch.equal(*later)
        alone = self.predict(dataclasses.replace(denoiser, guidance_scale=1.0), method, scheduler_config)
        torch.testing.assert_close(alone, weak, atol=1e-4, rtol=1e-4)

    def test_pictures_of_a_batch_are_independent(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        schedule = make_schedule(scheduler_config, 10)
        latents, moment = 5.0 * normal((2, 4, *LARGE.latent_hw), 1), Moment(LARGE, 2, schedule, 7)
        with torch.no_grad():
            both = FouriScale().predict(denoiser, latents, moment)
            single = torch.cat([FouriScale().predict(denoiser, row, moment) for row in latents.split(1)])
        torch.testing.assert_close(both, single, atol=1e-4, rtol=1e-4)

    def test_equal_branches_are_plain_guidance_with_dilation(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        """Masks of ones and no divisor: what is left is dilation."""
        method, level = FouriScale(floor=1.0, weak_divisor=1.0), Level(0, (256, 256), (64, 64))
        names = [name for layer in SDXL.layers for name in convs_under(denoiser.network, layer)]
        with patched(denoiser.network, [dilate_convs(names, (4, 4))]):
            expected = self.predict(denoiser, Direct(), scheduler_config, 2, level)
        output = self.predict(denoiser, method, scheduler_config, 2, level)
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
        filtered = self.predict(denoiser, FouriScale(weak_divisor=1.0), scheduler_config, 2, level)
        assert (filtered - expected).abs().max() > 1e-3

    @pytest.mark.parametrize(("step", "level"), [(7, LARGE), (9, LARGE), (0, Level(0, (64, 80), (64, 80)))])
    def test_off_is_direct_to_the_bit(self, denoiser: Denoiser, scheduler_config: Any, step: int, level: Level) -> None:
        """From the stop on, and at scale 1."""
        outputs = [self.predict(denoiser, method, scheduler_config, step, level) for method in (FouriScale(), Direct())]
        assert torch.equal(*outputs)

    def test_three_rows_then_two(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        rows: list[int] = []
        handle = denoiser.network.conv_in.register_forward_hook(lambda _m, _a, output: rows.append(len(output)))
        try:
            for step in (0, 6, 7):
                self.predict(denoiser, FouriScale(), scheduler_config, step)
        finally:
            handle.remove()
        assert rows == [3, 3, 2]

    def test_stable_diffusion_grows_from_its_square(self, sd_denoiser: Denoiser, scheduler_config: Any) -> None:
        """With its downsampler of stride 2, which is filtered at half the spread."""
        level = Level(0, (64, 256), base_size_for((64, 256), (64, 64)))
        assert FouriScale().base_for(sd_denoiser.network, level) == (64, 64)
        output = self.predict(sd_denoiser, FouriScale(), scheduler_config, 2, level)
        assert output.isfinite().all()
        assert not torch.equal(output, self.predict(sd_denoiser, Direct(), scheduler_config, 2, level))
        assert torch.equal(
            self.predict(sd_denoiser, FouriScale(freeu=None), scheduler_config, 7, level),
            self.predict(sd_denoiser, Direct(), scheduler_config, 7, level),
        )


@pytest.mark.parametrize("freeu", [None, (1.1, 1.2, 0.6, 0.4)])
def test_scale_one_is_direct_to_the_bit(denoiser: Denoiser, scheduler_config: Any, freeu: Any) -> None:
    schedule, level = make_schedule(scheduler_config, 4, "ddim", 1.0), Level(0, (64, 80), (64, 80))
    assert torch.equal(
        render(denoiser, FouriScale(freeu=freeu), level, schedule),
        render(denoiser, Direct(freeu=freeu), level, schedule),
    )


OTHERS = [
    pytest.param(more, marks=pytest.mark.thorough) for more in ({"bucket_rule": "released"}, {"progressive": False})
]


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, *OTHERS], ids=str)
def test_interrupted_is_uninterrupted(denoiser: Denoiser, scheduler_config: Any, options: Any) -> None:
    """In one part more, at the start, in the middle and before the last step; and in parts of one step."""
    schedule, method = make_schedule(scheduler_config, 5, "ddim", 1.0), FouriScale(**options)
    *_, last = goes_on(denoiser, method, LARGE, schedule, [1, 3, 4])
    assert last.latents.isfinite().all()
    assert torch.equal(render(denoiser, method, LARGE, schedule, [1, 2, 3, 4]), last.latents)


def test_nothing_is_left_on_the_unet(denoiser: Denoiser, scheduler_config: Any) -> None:
    before = snapshot(denoiser.network)
    schedule, method = make_schedule(scheduler_config, 4), FouriScale()
    start = method.start((1, 4, *LARGE.latent_hw), Moment(LARGE, 0, schedule, 7))
    for _ in denoise(denoiser, start, schedule, method, LARGE, seed=7):
        assert is_same(before, snapshot(denoiser.network))


@pytest.mark.parametrize("split", [False, True])
def test_nothing_is_left_after_an_exception(denoiser: Denoiser, scheduler_config: Any, split: bool) -> None:
    """Raised deep inside the first pass, and in the one with shared attention."""
    before, calls = snapshot(denoiser.network), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) > int(split):
            raise RuntimeError("deep inside")

    handle = denoiser.network.up_blocks[1].resnets[1].conv2.register_forward_hook(fail)
    frugal = dataclasses.replace(denoiser, compute=Compute(split_guidance=split))
    try:
        with pytest.raises(RuntimeError, match="deep inside"):
            render(frugal, FouriScale(), LARGE, make_schedule(scheduler_config, 4))
    finally:
        handle.remove()
    assert is_same(before, snapshot(denoiser.network))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in denoiser.network.modules())


def test_unknown_layers_are_refused(denoiser: Denoiser, scheduler_config: Any) -> None:
    with pytest.raises(ValueError, match=r"layer 'down_blocks\.3' is unknown, allowed: a 3x3 convolution"):
        render(denoiser, FouriScale(layers=("down_blocks.3",)), LARGE, make_schedule(scheduler_config, 4))


def test_a_model_is_told_the_size_it_grows_from() -> None:
    for size, told in (((2560, 2560), (1024, 1024)), ((2048, 4096), (704, 1408)), ((1000, 1000), (1000, 1000))):
        assert FouriScale().told_size((size,), base_size_for(size, (1024, 1024))) == told
        assert Direct().told_size((size,), base_size_for(size, (1024, 1024))) == size
    assert FouriScale(bucket_rule="released").told_size(((2560, 2560),), (1024, 1024)) == (896, 1088)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilate_fall": 1.5}, "dilate_fall is 1.5, allowed: 0 to 1"),
        ({"dilate_stop": -1.0}, "dilate_stop is -1.0"),
        ({"floor": 2.0}, "floor is 2.0"),
        ({"weak_divisor": 0.5}, "weak_divisor is 0.5, allowed: 1 or more"),
        ({"amplify": 0.0}, "amplify is 0.0"),
        ({"bucket_rule": "best"}, "bucket_rule is 'best', allowed: nearest, released"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FouriScale(**options)
