"""HiDiffusion: its operators against loops, the sizes of its grids step by step, and its size classes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from freescale.cascade import Level, base_size_for
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import Direct, HiDiffusion
from freescale.methods.hidiffusion.rau_net import layout_of, rau_net
from freescale.methods.hidiffusion.shifted_windows import ShiftedWindows, shifted_windows
from freescale.moment import Moment
from freescale.schedule import make_schedule
from freescale.unet_patches import patched
from freescale.windows import rolled_halves
from tests.oracles import hidiffusion as oracle
from tests.toys import TARGET, level_at, render, sd_text, sd_unet

Grid = tuple[int, int]
SDXL, SD = (1024, 1024), (512, 512)


def moment_of(size: Grid, native: Grid, step: int = 0, steps: int = 50) -> Moment:
    return Moment(Level(0, size, base_size_for(size, native)), step, make_schedule({}, steps), 7)


def windows_on(size: Grid, native: Grid, layout: Any, steps: int = 50, **options: Any) -> list[list[Any]]:
    """[factor, first step, last step] of RAD and of pooling, as they change along the steps."""
    found = []
    for which in (0, 1):
        factors = [
            HiDiffusion(**options).reductions(moment_of(size, native, step, steps), layout)[which]
            for step in range(steps)
        ]
        groups = [(f, [i for i, _ in run]) for f, run in itertools.groupby(enumerate(factors), key=lambda x: x[1])]
        found.append([[f, run[0], run[-1]] for f, run in groups if f > 1])
    return found


@pytest.mark.parametrize(
    ("size", "native", "layout", "rad", "pool"),
    [
        ((2048, 2048), SDXL, "sdxl", [[2, 0, 7]], [[2, 8, 19]]),
        pytest.param(
            (4096, 2048), SDXL, "sdxl", [[2, 0, 7]], [[2, 8, 19]], marks=pytest.mark.thorough
        ),  # one side below 4096
        pytest.param((8192, 2048), SDXL, "sdxl", [[2, 0, 7]], [[2, 8, 19]], marks=pytest.mark.thorough),
        pytest.param((4096, 4096), SDXL, "sdxl", [[2, 0, 14]], [[2, 0, 34]], marks=pytest.mark.thorough),
        pytest.param((4096, 5120), SDXL, "sdxl", [[2, 0, 14]], [[2, 0, 34]], marks=pytest.mark.thorough),
        pytest.param((8192, 8192), SDXL, "sdxl", [[2, 0, 14]], [[4, 0, 34]], marks=pytest.mark.thorough),  # ours
        pytest.param((1024, 1024), SD, "sd", [[2, 0, 19]], [], marks=pytest.mark.thorough),
        pytest.param((2048, 2048), SD, "sd", [[2, 0, 34]], [[2, 0, 14]], marks=pytest.mark.thorough),
        ((4096, 4096), SD, "sd", [[4, 0, 34]], [[2, 0, 14]]),  # ours
        ((512, 512), (128, 128), "sdxl", [[2, 0, 14]], [[2, 0, 34]]),  # the classes scale with the model
    ],
)
def test_size_classes(size: Grid, native: Grid, layout: Any, rad: Any, pool: Any) -> None:
    assert windows_on(size, native, layout) == [rad, pool]


def test_thresholds_are_shares() -> None:
    assert windows_on((4096, 4096), SDXL, "sdxl", steps=20) == [[[2, 0, 5]], [[2, 0, 13]]]
    turbo = {"rad": (0.0, 0.0), "pool": (0.0, 0.5)}
    assert windows_on((1024, 1024), SD, "sdxl", steps=4, **turbo) == [[], [[2, 0, 1]]]


def test_nothing_below_a_scale_that_rounds_to_two() -> None:
    assert list(HiDiffusion().patches(moment_of((1280, 1280), SDXL))) == []
    assert len(list(HiDiffusion().patches(moment_of((1600, 1600), SDXL)))) == 2


def grids(unet: Any, rad: int, pool: int, size: Grid, text: Conditioning) -> tuple[dict[str, Grid], Grid]:
    """Height and width of what each resnet receives, and of the output."""
    seen: dict[str, Grid] = {}

    def record(name: str) -> Any:
        return lambda _, args: seen.update({name: tuple(args[0].shape[-2:])})

    named = [(n, m) for n, m in unet.named_modules() if n.endswith(("resnets.0", "resnets.2"))]
    handles = [m.register_forward_pre_hook(record(n)) for n, m in named]
    with torch.no_grad(), patched(unet, [rau_net(rad, pool)]):
        sample = unet(normal((1, 4, *size), 1), 5, text.prompt_embeds, added_cond_kwargs=dict(text.added)).sample
    for handle in handles:
        handle.remove()
    return seen, tuple(sample.shape[-2:])


@pytest.mark.parametrize(
    ("rad", "pool", "deep", "middle"),
    [(1, 1, (8, 12), (16, 24)), (2, 1, (4, 6), (16, 24)), (1, 2, (4, 6), (8, 12)), (2, 2, (2, 3), (8, 12)),
     (2, 4, (1, 2), (4, 6))],
)  # fmt: skip
def test_grids_of_sdxl(
    rad: int, pool: int, deep: Grid, middle: Grid, sdxl_unet: Any, conditioning: Conditioning
) -> None:
    seen, output = grids(sdxl_unet, rad, pool, (32, 48), conditioning)
    assert output == (32, 48)
    assert seen["down_blocks.1.resnets.0"] == seen["up_blocks.1.resnets.2"] == (16, 24)
    assert seen["mid_block.resnets.0"] == seen["down_blocks.2.resnets.0"] == seen["up_blocks.0.resnets.2"] == deep
    assert seen["up_blocks.1.resnets.0"] == middle
    assert seen["up_blocks.2.resnets.0"] == (32, 48)


@pytest.mark.parametrize("version", ["1.5", "2.1"])
@pytest.mark.parametrize(
    ("rad", "pool", "deep", "second"),
    [(1, 1, (4, 6), (16, 24)), (2, 1, (2, 3), (8, 12)), (1, 2, (2, 3), (16, 24)), (2, 2, (1, 2), (8, 12))],
)
def test_grids_of_stable_diffusion(version: str, rad: int, pool: int, deep: Grid, second: Grid) -> None:
    seen, output = grids(sd_unet(version), rad, pool, (32, 48), sd_text())
    assert output == (32, 48)
    assert seen["mid_block.resnets.0"] == deep
    assert seen["down_blocks.1.resnets.0"] == seen["up_blocks.2.resnets.2"] == second
    assert seen["up_blocks.3.resnets.0"] == (32, 48)


@given(size=st.tuples(st.integers(8, 40), st.integers(8, 40)), rad=st.integers(1, 3), pool=st.integers(1, 3))
def test_any_grid_comes_back(sdxl_unet: Any, conditioning: Any, size: Grid, rad: int, pool: int) -> None:
    assert grids(sdxl_unet, rad, pool, size, conditioning)[1] == size


@given(size=st.tuples(st.integers(1, 14), st.integers(1, 14)))
def test_rad_is_the_strided_dilated_convolution(size: Grid) -> None:
    """Stride 4, padding 2 and dilation 2, computed as the layer on every second cell."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, 2, 1).double().requires_grad_(False)
    x = normal((1, 2, *size), 1).double()
    ours = conv(x[..., ::2, ::2])
    assert conv.bias is not None
    torch.testing.assert_close(ours[0], oracle.rad(x[0], conv.weight, conv.bias), atol=1e-12, rtol=0)
    assert torch.equal(ours, F.conv2d(x, conv.weight, conv.bias, stride=4, padding=2, dilation=2))


def test_rad_in_the_unet(sdxl_unet: Any, conditioning: Conditioning) -> None:
    """The downsampler as it is called there."""
    downsampler, x = sdxl_unet.down_blocks[1].downsamplers[0], normal((1, 32, 17, 20), 1)
    with torch.no_grad(), patched(sdxl_unet, [rau_net(2, 1)]):
        output = downsampler(x)
        conv = downsampler.conv
        expected = F.conv2d(x, conv.weight, conv.bias, stride=4, padding=2, dilation=2)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    assert output.shape[-2:] == (5, 5)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 3)])
def test_pooling_and_back(size: Grid, sdxl_unet: Any) -> None:
    x = normal((1, 32, *size), 1)
    embeds = normal((1, 5, 32), 2)
    attention = sdxl_unet.down_blocks[1].attentions[0]
    with torch.no_grad():
        plain = attention(x, embeds, return_dict=False)[0]
        with patched(sdxl_unet, [rau_net(1, 2)]):
            pooled = attention(x, embeds, return_dict=False)[0]
            back = sdxl_unet.up_blocks[1].attentions[1](pooled, embeds, return_dict=False)[0]
        small = sdxl_unet.up_blocks[1].attentions[1](pooled, embeds, return_dict=False)[0]
    torch.testing.assert_close(pooled[0], oracle.pool(plain[0]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(back, F.interpolate(small, size=size, mode="bicubic", align_corners=False))


@given(grid=st.tuples(st.integers(1, 15), st.integers(1, 15)), shift=st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_windows_hold_every_token_once(grid: Grid, shift: Grid) -> None:
    sets = rolled_halves(grid, shift)
    assert sorted(torch.cat([s.flatten() for s in sets]).tolist()) == list(range(grid[0] * grid[1]))
    half = -(-grid[0] // 2) * -(-grid[1] // 2)
    assert all(s.shape[1] <= half for s in sets)
    if grid[0] % 2 == grid[1] % 2 == 0:
        assert [tuple(s.shape) for s in sets] == [(4, half)]


def attention_of() -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attn = Attention(8, heads=2, dim_head=4).double().eval()
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.6)
    return attn.requires_grad_(False)


@pytest.mark.parametrize("quarter", [0, 1, 3])
@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (7, 9), (5, 8), (1, 6)])
def test_attention_is_that_of_each_window(grid: Grid, quarter: int) -> None:
    """Against loops over tokens; odd sides padded and left out of the softmax."""
    attn, x = attention_of(), normal((2, grid[0] * grid[1], 8), 1).double()
    processor = ShiftedWindows(attn.processor, "a.transformer_blocks.0.attn1", {"a": grid}, quarter)
    output = processor(attn, x).view(2, *grid, 8)
    shift = (-(-grid[0] // 2) // 4 * quarter, -(-grid[1] // 2) // 4 * quarter)
    for i in range(2):
        slow = oracle.shifted(attn, x[i].view(*grid, 8), shift)
        torch.testing.assert_close(output[i], slow, atol=1e-12, rtol=0)


def test_unshifted_windows_are_the_quadrants() -> None:
    attn, x = attention_of(), normal((1, 6, 8, 8), 1).double()
    processor = ShiftedWindows(attn.processor, "a.transformer_blocks.0.attn1", {"a": (6, 8)}, 0)
    output = processor(attn, x.flatten(1, 2)).view(x.shape)
    for r, c in itertools.product((slice(0, 3), slice(3, 6)), (slice(0, 4), slice(4, 8))):
        torch.testing.assert_close(output[:, r, c], attn(x[:, r, c].flatten(1, 2)).view(1, 3, 4, 8), atol=1e-12, rtol=0)


def test_cross_attention_and_masks_are_left_alone() -> None:
    attn, x = attention_of(), normal((1, 12, 8), 1).double()
    processor = ShiftedWindows(attn.processor, "a.transformer_blocks.0.attn1", {"a": (3, 4)}, 1)
    context = normal((1, 5, 8), 2).double()
    assert torch.equal(processor(attn, x, context), attn(x, context))
    mask = torch.zeros(1, 1, 12, dtype=torch.float64)
    assert torch.equal(processor(attn, x, None, mask), attn(x, None, mask))


def windowed(unet: Any) -> set[str]:
    with patched(unet, [shifted_windows(lambda name: 0)]):
        processors = unet.attn_processors.items()
        return {n.removesuffix(".attn1.processor") for n, p in processors if isinstance(p, ShiftedWindows)}


def test_windowed_layers(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    """Ten of SDXL, five of Stable Diffusion: all at the largest grid with attention."""
    assert (layout_of(full_sdxl_unet), layout_of(full_sd_unet)) == ("sdxl", "sd")
    blocks = [*(f"down_blocks.1.attentions.{i}" for i in range(2)), *(f"up_blocks.1.attentions.{i}" for i in range(3))]
    assert windowed(full_sdxl_unet) == {f"{b}.transformer_blocks.{k}" for b in blocks for k in range(2)}
    blocks = [*(f"down_blocks.0.attentions.{i}" for i in range(2)), *(f"up_blocks.3.attentions.{i}" for i in range(3))]
    assert windowed(full_sd_unet) == {f"{b}.transformer_blocks.0" for b in blocks}


def test_shift_follows_from_seed_level_step_and_layer() -> None:
    def quarters(seed: int = 7, step: int = 3) -> list[int]:
        moment = Moment(level_at(1), step, make_schedule({}, 20), seed)
        return [HiDiffusion().quarter(moment, f"layer.{i}") for i in range(40)]

    assert quarters() == quarters()
    assert set(quarters()) == {0, 1, 2, 3}
    assert quarters(8) != quarters() != quarters(step=4)


@pytest.mark.thorough
def test_everything_off_is_plain_sampling(sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any) -> None:
    denoiser, schedule = Denoiser(sdxl_unet, conditioning, 3.0), make_schedule(scheduler_config, 3)
    level = Level(0, TARGET, (64, 80))
    off = HiDiffusion(rad=(0.0, 0.0), pool=(0.0, 0.0), windows=False)
    direct = render(denoiser, Direct(), level, schedule)
    assert torch.equal(render(denoiser, off, level, schedule), direct)
    parts: list[Tensor] = [direct]
    for options in ({"rad": (0.0, 1.0)}, {"pool": (0.0, 1.0)}, {"windows": True}):
        method = HiDiffusion(**{"rad": (0.0, 0.0), "pool": (0.0, 0.0), "windows": False, **options})  # type: ignore[arg-type]
        parts.append(render(denoiser, method, level, schedule))
    for one, other in itertools.combinations(parts, 2):
        assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rad": (0.5, 0.2)}, r"rad is \(0.5, 0.2\), allowed: two rising shares"),
        ({"pool": (0.0, 1.5)}, "pool is"),
        ({"shifts": 0}, "shifts is 0, allowed: 1 or more"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiDiffusion(**options)
    with pytest.raises(ValueError, match="reductions are 0 and 1, allowed: 1 or more"):
        rau_net(0, 1)
