"""ScaleCrafter: its convolutions, its released settings, its guidance."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from freescale.cascade import Level, base_size_for
from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Denoiser
from freescale.methods import Direct, ScaleCrafter
from freescale.methods.scalecrafter.method import layers_at, progressive_factor
from freescale.methods.scalecrafter.redilation import (
    disperse,
    dispersion_matrix,
    factors_under,
    redilate,
    redilate_convs,
)
from freescale.methods.scalecrafter.settings import RELEASED, SD, SDXL, Setting, setting_for
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.schedule import make_schedule
from freescale.unet_patches import patched
from tests.freescale.test_unet_patches import is_same, snapshot
from tests.oracles import redilation as oracle
from tests.toys import goes_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale.methods import Method
    from freescale.schedule import Schedule

SIZES = st.tuples(st.integers(2, 7), st.integers(2, 7))
SHAPES = Path(__file__).parents[2] / "stages" / "shapes" / "model" / "unet"
WIDE = {"sdxl": 1024, "sd15": 512, "sd21": 512}


def conv_of(stride: int = 1, seed: int = 0) -> nn.Conv2d:
    conv = nn.Conv2d(2, 3, 3, stride, 1).double().requires_grad_(False)
    conv.weight.copy_(normal((3, 2, 3, 3), seed, "weight"))
    return conv


@pytest.fixture(scope="module")
def unets(full_sdxl_unet: Any, full_sd_unet: Any) -> dict[str, Any]:
    """UNets of full size by kind, names and shapes only."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        sd21 = UNet2DConditionModel.from_config(full_sd_unet.config, cross_attention_dim=1024)
    return {"sdxl": full_sdxl_unet, "sd15": full_sd_unet, "sd21": sd21}


@pytest.fixture(scope="module")
def shapes_unet() -> Any:
    """The UNet of the embedded model, names and shapes only."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SHAPES))


@pytest.fixture(scope="module")
def slow_matrix() -> Tensor:
    """R by the oracle."""
    return oracle.dispersion(0.05, 3)


class TestRedilation:
    """A convolution that sees further."""

    @given(size=SIZES, factor=st.floats(1.0, 4.0), stride=st.integers(1, 2))
    def test_is_resize_convolve_resize(self, size: tuple[int, int], factor: float, stride: int) -> None:
        conv, x = conv_of(stride), normal((1, 2, *size), 1).double()
        slow = oracle.redilate(x[0], conv.weight, conv.bias, factor, stride)
        torch.testing.assert_close(redilate(conv, x, factor)[0], slow, atol=1e-10, rtol=0)

    @given(size=SIZES, factor=st.integers(1, 4), stride=st.integers(1, 2))
    def test_whole_factor_is_dilation(self, size: tuple[int, int], factor: int, stride: int) -> None:
        conv, x = conv_of(stride), normal((1, 2, *size), 1).double()
        expected = F.conv2d(x, conv.weight, conv.bias, stride, padding=factor, dilation=factor)
        assert torch.equal(redilate(conv, x, float(factor)), expected)
        if factor == 1:
            assert torch.equal(expected, conv(x))

    @given(size=st.tuples(st.integers(2, 33), st.integers(2, 33)), factor=st.floats(1.0, 8.0), stride=st.integers(1, 2))
    def test_keeps_the_size_of_the_output(self, size: tuple[int, int], factor: float, stride: int) -> None:
        conv, x = conv_of(stride), torch.zeros(1, 2, *size, dtype=torch.float64)
        assert redilate(conv, x, factor).shape == conv(x).shape
        assert disperse(conv, x, factor).shape == conv(x).shape

    @pytest.mark.parametrize("factor", [1.0, 2.0, 2.5, 3.7])
    def test_simple_kernels_stay_simple(self, factor: float) -> None:
        """Means of a constant are constant inside; resizing blurs a delta, so that one only for whole factors."""
        conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
        conv.weight.fill_(1 / 9)
        inside = redilate(conv, torch.ones(1, 1, 17, 17), factor)[..., 6:11, 6:11]
        torch.testing.assert_close(inside, torch.ones(1, 1, 5, 5))
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        x = normal((1, 1, 9, 9), 2)
        assert torch.equal(redilate(conv, x, round(factor)), x)

    def test_factors_without_a_meaning_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"re-dilation factor is 0\.0, allowed: above 0"):
            redilate(conv_of(), torch.zeros(1, 2, 4, 4, dtype=torch.float64), 0.0)


class TestDispersion:
    """A kernel of 5 x 5 taps for one of 3 x 3."""

    @pytest.mark.parametrize(
        ("closeness", "grid"),
        [
            (0.05, 2),
            (1.0, 2),
            *(pytest.param(*more, marks=pytest.mark.thorough) for more in ((0.05, 3), (0.0, 3), (0.3, 4))),
        ],
    )
    def test_matrix_solves_the_least_squares_problem(self, closeness: float, grid: int) -> None:
        matrix = dispersion_matrix(closeness, grid)
        # normal equations square the condition number: 1e-10 is what is left of 1e-16
        torch.testing.assert_close(matrix, oracle.dispersion(closeness, grid), atol=1e-10, rtol=0)

    def test_matrix_has_the_known_sums(self) -> None:
        matrix = dispersion_matrix()
        assert matrix.shape == (25, 9)
        delta = torch.zeros(25, dtype=torch.float64)
        delta[12] = 1.0
        torch.testing.assert_close(matrix[:, 4], delta, atol=1e-12, rtol=0)
        sums = torch.tensor([1.127, 1.061, 1.127, 1.061, 1.0, 1.061, 1.127, 1.061, 1.127], dtype=torch.float64)
        torch.testing.assert_close(matrix.sum(0), sums, atol=5e-4, rtol=0)
        assert float(matrix.sum()) == pytest.approx(9.7523, abs=5e-5)

    def test_matrix_turns_with_the_kernel(self) -> None:
        matrix = dispersion_matrix().view(5, 5, 3, 3)
        for moved in (
            matrix.rot90(1, (0, 1)).rot90(1, (2, 3)),
            matrix.flip(0, 2),
            matrix.flip(1, 3),
            matrix.permute(1, 0, 3, 2),
        ):
            torch.testing.assert_close(moved, matrix, atol=1e-12, rtol=0)

    @pytest.mark.parametrize(("closeness", "within"), [(1.0, 0.66), (5.0, 0.14), (20.0, 0.01), (200.0, 1.01e-4)])
    def test_a_heavy_weight_keeps_the_kernel(self, closeness: float, within: float) -> None:
        kept = torch.zeros(5, 5, 3, 3, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                kept[i + 1, j + 1, i, j] = 1.0
        deviation = (dispersion_matrix(closeness).view(5, 5, 3, 3) - kept).abs().max()
        assert within / 2 < deviation < within

    @pytest.mark.thorough
    @given(size=SIZES, factor=st.sampled_from([1.0, 2.0, 3.0, 5.0]), stride=st.integers(1, 2))
    def test_disperses_at_half_the_dilation(
        self, slow_matrix: Tensor, size: tuple[int, int], factor: float, stride: int
    ) -> None:
        conv, x = conv_of(stride), normal((1, 2, *size), 1).double()
        weight, padding = conv.weight, conv.padding
        kernel = torch.einsum("tk,ock->oct", slow_matrix, weight.flatten(2)).unflatten(2, (5, 5))
        slow = oracle.redilate(x[0], kernel, conv.bias, factor / 2, stride)
        torch.testing.assert_close(disperse(conv, x, factor)[0], slow, atol=1e-9, rtol=0)
        assert conv.weight is weight
        assert (conv.padding, conv.dilation) == (padding, (1, 1))

    def test_field_is_as_wide_as_before(self) -> None:
        """5 x 5 taps at d / 2 span the same +-d as 3 x 3 at d."""
        conv, x = conv_of(), torch.zeros(1, 2, 21, 21, dtype=torch.float64)
        x[..., 10, 10] = 1.0
        seen = [(f(conv, x, 4.0) - f(conv, 0 * x, 4.0))[0].abs().sum(0).nonzero() for f in (redilate, disperse)]
        for places in seen:
            assert places.min(0).values.tolist() == [6, 6]
            assert places.max(0).values.tolist() == [14, 14]

    def test_failure_leaves_the_convolution_as_it_was(self) -> None:
        conv = conv_of()
        before = snapshot(conv)
        with pytest.raises(RuntimeError):
            disperse(conv, torch.zeros(1, 5, 4, 4, dtype=torch.float64), 2.0)
        assert is_same(before, snapshot(conv))


FALLING = {  # factor, end of 50 steps: factor by first step
    (4.0, 35): {0: 4, 9: 3, 18: 2},
    (3.0, 35): {0: 3, 12: 2},
    (2.0, 35): {0: 2},
    (4.0, 37): {0: 4, 10: 3, 19: 2},
    (3.0, 37): {0: 3, 13: 2},
}


@pytest.mark.parametrize(("case", "table"), FALLING.items(), ids=str)
def test_factors_fall_as_released(case: tuple[float, int], table: dict[int, int]) -> None:
    (factor, end), expected = case, 0
    schedule, level = make_schedule({}, 50), Level(0, (64, 64), (64, 64))
    for step in range(50):
        expected = table.get(step, expected)
        layers = layers_at((("mid_block", factor),), end / 50, True, Moment(level, step, schedule, 0))
        assert layers == ((("mid_block", expected),) if step < end else ())
        if step < end:
            assert progressive_factor(factor, step, end) == expected


# kind, (height, width): convolutions, factors of some of them, stop, ndcfg convolutions, ndcfg stop
MID, TOP = "mid_block.resnets.0.conv1", "up_blocks.2.resnets.0.conv1"
SETTINGS: list[tuple[str, tuple[int, int], int, dict[str, float], float, int, float]] = [
    ("sdxl", (2048, 2048), 11, {MID: 2, "up_blocks.0.upsamplers.0.conv": 2}, 0.6, 0, 0.0),
    ("sdxl", (2560, 2560), 11, {MID: 2.5}, 0.6, 0, 0.0),
    ("sdxl", (2048, 4096), 28, {"down_blocks.2.resnets.0.conv1": 3, MID: 4, TOP: 2}, 0.7, 11, 0.7),
    ("sdxl", (4096, 2048), 28, {"down_blocks.2.resnets.0.conv1": 3, MID: 4, TOP: 2}, 0.7, 11, 0.7),
    ("sdxl", (4096, 4096), 28, {"down_blocks.2.resnets.0.conv1": 4, MID: 4, TOP: 2}, 0.7, 11, 0.7),
    ("sdxl", (8192, 8192), 28, {MID: 8, "up_blocks.1.upsamplers.0.conv": 6, TOP: 4}, 0.7, 11, 0.7),
    ("sd15", (1024, 1024), 39, {MID: 2, "down_blocks.1.resnets.0.conv1": 2}, 0.6, 0, 0.0),
    ("sd15", (1280, 1280), 39, {MID: 2.5}, 0.7, 0, 0.0),
    ("sd15", (1024, 2048), 39, {MID: 4, "up_blocks.1.resnets.0.conv1": 3, TOP: 2}, 0.7, 27, 0.7),
    ("sd15", (2048, 2048), 39, {MID: 4, "down_blocks.2.downsamplers.0.conv": 3, TOP: 2}, 0.7, 27, 0.7),
    ("sd21", (1024, 1024), 39, {MID: 2}, 0.4, 0, 0.0),
    ("sd21", (1280, 1280), 39, {MID: 2.5}, 0.6, 0, 0.0),
    ("sd21", (2048, 1024), 39, {MID: 4, TOP: 2}, 0.74, 0, 0.0),
    ("sd21", (2048, 2048), 40, {MID: 4, TOP: 3, "up_blocks.3.resnets.2.conv2": 2}, 0.74, 34, 0.74),
]


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: f"{row[0]}-{row[1][0]}x{row[1][1]}")
def test_released_settings(unets: dict[str, Any], row: Any) -> None:
    kind, size, count, factors, stop, damped, damped_stop = row
    level = Level(0, size, base_size_for(size, (WIDE[kind], WIDE[kind])))
    setting = setting_for(unets[kind], level)
    found = factors_under(unets[kind], setting.layers)
    assert len(found) == count
    assert {name: found[name] for name in factors} == factors
    assert (setting.dilate_stop, setting.ndcfg_stop) == (stop, damped_stop)
    assert len(factors_under(unets[kind], setting.ndcfg_layers)) == damped
    assert setting.progressive == (min(size) >= 2 * WIDE[kind] and max(size) >= 4 * WIDE[kind])


def test_damping_layers_have_their_released_factors(unets: dict[str, Any]) -> None:
    for kind, expected in (("sdxl", {2.0}), ("sd15", {3.0, 4.0}), ("sd21", {3.0, 4.0})):
        side = WIDE[kind]
        setting = setting_for(unets[kind], Level(0, (4 * side, 4 * side), (side, side)))
        assert set(factors_under(unets[kind], setting.ndcfg_layers).values()) == expected


def test_layers_are_plain_three_by_three_convolutions(unets: dict[str, Any]) -> None:
    for kind, side in WIDE.items():
        setting = setting_for(unets[kind], Level(0, (4 * side, 4 * side), (side, side)))
        for name in factors_under(unets[kind], setting.layers):
            conv = unets[kind].get_submodule(name)
            assert (type(conv), conv.kernel_size, conv.padding) == (nn.Conv2d, (3, 3), (1, 1))


def test_dispersed_layers(unets: dict[str, Any]) -> None:
    for kind, topology, count in (("sdxl", SDXL, 15), ("sd15", SD, 23)):
        assert len(factors_under(unets[kind], [(block, 1.0) for block in topology.dispersed])) == count


@given(cells=st.tuples(st.integers(8, 128), st.integers(8, 128)))
def test_every_size_resolves_on_shapes(shapes_unet: Any, cells: tuple[int, int]) -> None:
    size = (8 * cells[0], 8 * cells[1])
    level = Level(0, size, base_size_for(size, (128, 128)))
    setting = setting_for(shapes_unet, level)
    found = factors_under(shapes_unet, setting.layers)
    wide = setting == RELEASED["sdxl"][2.0, 4.0]
    assert len(found) == (0 if level.factor < 1.25 else 11 if level.factor <= 2.75 and not wide else 28)
    assert all(factor >= 1.25 for factor in found.values())


def test_rare_models_and_names_are_refused(sdxl_unet: Any, scheduler_config: Any, conditioning: Any) -> None:
    level, schedule = Level(0, (128, 160), (64, 80)), make_schedule(scheduler_config, 10)
    before = snapshot(sdxl_unet)
    for layers in ((("down_blocks.3", 2.0),), (("mid_block.resnets.0.conv_shortcut", 2.0),), (("mid", 2.0),)):
        with pytest.raises(ValueError, match=r"layer '\S+' is unknown, allowed: a 3x3 convolution"):
            render(Denoiser(sdxl_unet, conditioning, 4.0), ScaleCrafter(layers=layers), level, schedule)
        assert is_same(before, snapshot(sdxl_unet))
    with (
        pytest.raises(ValueError, match=r"layers to dilate are \['no\.such'\]"),
        patched(sdxl_unet, [redilate_convs({MID: 2.0, "no.such": 2.0})]),
    ):
        pass
    assert is_same(before, snapshot(sdxl_unet))
    two = nn.Module()
    two.down_blocks = nn.ModuleList([nn.Identity()] * 2)
    with pytest.raises(ValueError, match="the UNet has 2 levels, allowed: 3"):
        setting_for(two, level)


def render(denoiser: Denoiser, method: Method, level: Level, schedule: Schedule, cuts: Sequence[int] = ()) -> Tensor:
    """All steps from noise, the loop left and entered again at each of `cuts`."""
    latents = method.start((1, 4, *level.latent_hw), Moment(level, 0, schedule, 7))
    for first, stop in pairwise([0, *cuts, len(schedule)]):
        for step in denoise(denoiser, latents, schedule, method, level, seed=7, start=first, stop=stop):
            latents = step.latents.clone()
    return latents


LARGE = Level(0, (248, 320), (64, 80))  # factor 4, odd sides on the way down


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Any) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


class TestGuidance:
    """Strong and weak nets."""

    def predict(self, denoiser: Denoiser, method: Method, config: Any, step: int = 2, level: Level = LARGE) -> Tensor:
        moment = Moment(level, step, make_schedule(config, 10), 7)
        with torch.no_grad():
            return method.predict(denoiser, 5.0 * normal((1, 4, *level.latent_hw), 1), moment)

    def passes(self, denoiser: Denoiser, factors: Any, config: Any, step: int) -> tuple[Tensor, ...]:
        """(negative, positive) of one re-dilated net, the rows one by one."""
        latents = 5.0 * normal((1, 4, *LARGE.latent_hw), 1)
        with torch.no_grad(), patched(denoiser.network, [redilate_convs(factors)]):
            single = dataclasses.replace(denoiser, compute=Compute(split_guidance=True))
            return single.pair(latents, step, make_schedule(config, 10))

    def test_leads_away_from_strong_and_starts_at_weak(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        inner = [(block, 4.0) for block in ("down_blocks.2", "mid_block", "up_blocks.0")]
        strong = factors_under(denoiser.network, [*inner, ("up_blocks.1", 3.0), ("up_blocks.2", 2.0)])
        weak = factors_under(denoiser.network, [("mid_block", 2.0), ("up_blocks.0", 2.0)])
        negative, positive = self.passes(denoiser, strong, scheduler_config, 2)
        damped, _ = self.passes(denoiser, weak, scheduler_config, 2)
        output = self.predict(denoiser, ScaleCrafter(progressive=False), scheduler_config)
        torch.testing.assert_close(output, damped + 4.0 * (positive - negative), atol=1e-4, rtol=1e-4)

    def test_weak_as_strong_is_plain_guidance(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        layers = (("mid_block", 3.0), ("up_blocks.0", 2.5))
        same = ScaleCrafter(layers=layers, dilate_stop=0.5, ndcfg_layers=layers, ndcfg_stop=0.5, progressive=False)
        plain = dataclasses.replace(same, ndcfg_layers=None, ndcfg_stop=0.0)
        outputs = [self.predict(denoiser, method, scheduler_config) for method in (same, plain)]
        torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)

    def test_papers_weak_net_is_the_unet_itself(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        method = ScaleCrafter(layers=(("mid_block", 3.0),), ndcfg_layers=(), ndcfg_stop=0.5, progressive=False)
        factors = factors_under(denoiser.network, [("mid_block", 3.0)])
        negative, positive = self.passes(denoiser, factors, scheduler_config, 2)
        plain, _ = self.passes(denoiser, {}, scheduler_config, 2)
        expected = plain + 4.0 * (positive - negative)
        output = self.predict(denoiser, method, scheduler_config)
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
        assert (output - (negative + 4.0 * (positive - negative))).abs().max() > 1e-3

    def test_three_rows_while_damped_then_two(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        rows: list[int] = []
        handle = denoiser.network.conv_in.register_forward_hook(lambda _m, _a, output: rows.append(len(output)))
        try:
            for step in (0, 6, 7):
                self.predict(denoiser, ScaleCrafter(), scheduler_config, step)
            self.predict(dataclasses.replace(denoiser, guidance_scale=0.0), ScaleCrafter(), scheduler_config, 0)
        finally:
            handle.remove()
        assert rows == [2, 1, 2, 1, 2, 1]

    def test_off_is_direct_to_the_bit(self, denoiser: Denoiser, scheduler_config: Any) -> None:
        """After the stops, and at any step where the scale is about 1."""
        small = Level(0, (72, 88), (64, 80))
        for step, level in ((7, LARGE), (9, LARGE), (0, small)):
            outputs = [
                self.predict(denoiser, method, scheduler_config, step, level) for method in (ScaleCrafter(), Direct())
            ]
            assert torch.equal(*outputs)
        assert not torch.equal(
            self.predict(denoiser, ScaleCrafter(), scheduler_config, 6),
            self.predict(denoiser, Direct(), scheduler_config, 6),
        )


@pytest.mark.parametrize("freeu", [None, (1.1, 1.2, 0.6, 0.4)])
def test_scale_one_is_direct_to_the_bit(denoiser: Denoiser, scheduler_config: Any, freeu: Any) -> None:
    schedule, level = make_schedule(scheduler_config, 4, "ddim", 1.0), Level(0, (64, 80), (64, 80))
    assert torch.equal(
        render(denoiser, ScaleCrafter(freeu=freeu), level, schedule),
        render(denoiser, Direct(freeu=freeu), level, schedule),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"disperse_stop": 0.8}, {}, {"layers": (("mid_block", 2.5),)}], ids=str)
def test_interrupted_is_uninterrupted(denoiser: Denoiser, scheduler_config: Any, options: Any) -> None:
    """In one part more, at the start and before the last step; and in parts of one step."""
    schedule, method = make_schedule(scheduler_config, 4, "ddim", 1.0), ScaleCrafter(**options)
    *_, last = goes_on(denoiser, method, LARGE, schedule, [1, 3])
    assert last.latents.isfinite().all()
    assert torch.equal(render(denoiser, method, LARGE, schedule, [1, 2, 3]), last.latents)


@pytest.mark.thorough
def test_dispersion_works_and_matters(denoiser: Denoiser, scheduler_config: Any) -> None:
    """Also where nothing is dilated any more, with lists of its own, and close to the kernel with a heavy weight."""
    schedule = make_schedule(scheduler_config, 2)
    plain = render(denoiser, ScaleCrafter(), LARGE, schedule)
    outputs = [
        render(denoiser, ScaleCrafter(**options), LARGE, schedule)
        for options in (
            {"disperse_stop": 0.5},
            {"disperse_stop": 1.0},
            {"disperse_stop": 1.0, "disperse_layers": ("mid_block",)},
            {"disperse_stop": 1.0, "disperse_closeness": 1.0},
        )
    ]
    for first, second in pairwise([plain, *outputs]):
        assert second.isfinite().all()
        assert (first - second).abs().max() > 1e-4


def test_nothing_is_left_on_the_unet(denoiser: Denoiser, scheduler_config: Any) -> None:
    before = snapshot(denoiser.network)
    schedule, method = make_schedule(scheduler_config, 4), ScaleCrafter(disperse_stop=0.7)
    start = method.start((1, 4, *LARGE.latent_hw), Moment(LARGE, 0, schedule, 7))
    for _ in denoise(denoiser, start, schedule, method, LARGE, seed=7):
        assert is_same(before, snapshot(denoiser.network))


@pytest.mark.parametrize("call", [0, 1, 2])
def test_nothing_is_left_after_an_exception(denoiser: Denoiser, scheduler_config: Any, call: int) -> None:
    """Raised deep inside the first strong pass, the weak pass, or the next step."""
    before, calls = snapshot(denoiser.network), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) > call:
            raise RuntimeError("deep inside")

    handle = denoiser.network.up_blocks[1].resnets[1].conv2.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="deep inside"):
            render(denoiser, ScaleCrafter(disperse_stop=0.7), LARGE, make_schedule(scheduler_config, 4))
    finally:
        handle.remove()
    assert is_same(before, snapshot(denoiser.network))


def test_given_fields_stand_in_place_of_the_setting(sdxl_unet: Any, scheduler_config: Any) -> None:
    moment = Moment(LARGE, 0, make_schedule(scheduler_config, 10), 7)
    released = ScaleCrafter().setting_at(sdxl_unet, moment)
    assert released == setting_for(sdxl_unet, LARGE)
    assert isinstance(released, Setting)
    own = ScaleCrafter(dilate_stop=0.5, progressive=False).setting_at(sdxl_unet, moment)
    assert own == dataclasses.replace(released, dilate_stop=0.5, progressive=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilate_stop": 1.5}, "dilate_stop is 1.5, allowed: 0 to 1"),
        ({"ndcfg_stop": -0.1}, "ndcfg_stop is -0.1"),
        ({"disperse_stop": 2.0}, "disperse_stop is 2.0"),
        ({"layers": (("mid_block", 0.5),)}, "layers is .* allowed: factors of 1 or more"),
        ({"ndcfg_layers": ()}, "ndcfg_stop is None with ndcfg_layers given"),
        ({"disperse_closeness": -1.0}, "disperse_closeness is -1.0"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleCrafter(**options)
