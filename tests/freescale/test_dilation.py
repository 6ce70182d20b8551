"""Which convolutions are dilated, how far, and what dilation is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freescale.cascade import Level
from freescale.dilation import dilated_layers, dilation_factor, restrained_dilation
from freescale.unet_patches import dilate_convs, patched

MIDDLE = [f"mid_block.resnets.{j}.conv{k}" for j, k in itertools.product((0, 1), (1, 2))]


def resnets(block: str, number: int) -> list[str]:
    return [f"{block}.resnets.{j}.conv{k}" for j, k in itertools.product(range(number), (1, 2))]


def test_nine_layers_of_sdxl(full_sdxl_unet: Any) -> None:
    expected = ["down_blocks.1.downsamplers.0.conv", *resnets("down_blocks.2", 2), *MIDDLE]
    assert len(expected) == 9
    assert sorted(dilated_layers(full_sdxl_unet)) == sorted(expected)


def test_fourteen_layers_of_stable_diffusion(full_sd_unet: Any) -> None:
    expected = ["down_blocks.1.downsamplers.0.conv", *resnets("down_blocks.2", 2)]
    expected += ["down_blocks.2.downsamplers.0.conv", *resnets("down_blocks.3", 2), *MIDDLE]
    assert len(expected) == 14
    assert sorted(dilated_layers(full_sd_unet)) == sorted(expected)


def test_up_blocks_of_the_ablation(full_sdxl_unet: Any) -> None:
    down_mid = set(dilated_layers(full_sdxl_unet))
    deepest = set(dilated_layers(full_sdxl_unet, "up0")) - down_mid
    assert deepest == {*resnets("up_blocks.0", 3), "up_blocks.0.upsamplers.0.conv"}
    every = set(dilated_layers(full_sdxl_unet, "all_up")) - down_mid
    assert len(every) == 20
    assert every >= {*deepest, *resnets("up_blocks.2", 3), "up_blocks.1.upsamplers.0.conv"}


def test_layers_are_plain_three_by_three_convolutions(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    for unet in (full_sdxl_unet, full_sd_unet):
        modules = dict(unet.named_modules())
        for name in dilated_layers(unet, "all_up"):
            conv = modules[name]
            assert (type(conv), conv.padding_mode) == (nn.Conv2d, "zeros")
            assert (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("size", "scale", "axis", "width"),
    [
        ((2048, 2048), (2, 2), (2, 2), (2, 2)),
        ((4096, 2048), (4, 4), (4, 2), (2, 2)),
        ((2048, 4096), (4, 4), (2, 4), (4, 4)),
        ((2048, 1024), (2, 2), (2, 1), (1, 1)),
        ((2560, 2560), (2, 2), (2, 2), (2, 2)),
        ((2816, 768), (3, 3), (3, 1), (1, 1)),
        ((1280, 1280), (1, 1), (1, 1), (1, 1)),
    ],
)
def test_factors(size: tuple[int, int], scale: Any, axis: Any, width: Any) -> None:
    level = Level(1, size, (1024, 1024))
    factors = [dilation_factor(level, rule) for rule in ("scale", "axis", "width")]
    assert factors == [scale, axis, width]


@given(
    size=st.tuples(st.integers(2, 13), st.integers(2, 13)),
    factor=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 2),
)
def test_dilated_layer(size: tuple[int, int], factor: tuple[int, int], stride: int) -> None:
    """It keeps the size of its output, is what torch calls dilated, and the plain layer at factor 1."""
    holder = nn.Module()
    holder.conv = conv = nn.Conv2d(2, 3, 3, stride, 1).double().requires_grad_(False)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    plain = conv(x)
    with patched(holder, [dilate_convs(["conv"], factor)]):
        output = conv(x)
    assert output.shape == plain.shape
    expected = F.conv2d(x, conv.weight, conv.bias, stride, padding=factor, dilation=factor)
    assert torch.equal(output, expected)
    if factor == (1, 1):
        assert torch.equal(output, plain)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_dilation_is_the_layer_on_every_phase(factor: int) -> None:
    """The plain convolution on each of the factor x factor interleaved grids (sides that divide)."""
    conv = nn.Conv2d(2, 3, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(1, 2, 4 * factor, 5 * factor, dtype=torch.float64)
    output = F.conv2d(x, conv.weight, conv.bias, padding=factor, dilation=factor)
    for p, q in itertools.product(range(factor), repeat=2):
        phase = slice(p, None, factor), slice(q, None, factor)
        torch.testing.assert_close(output[:, :, *phase], conv(x[:, :, *phase]), atol=1e-13, rtol=0)


def test_simple_kernels_stay_simple() -> None:
    holder = nn.Module()
    holder.conv = conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    x = torch.randn(1, 1, 9, 9)
    with patched(holder, [dilate_convs(["conv"], (3, 3))]):
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        assert torch.equal(conv(x), x)
        conv.weight.fill_(1 / 9)
        torch.testing.assert_close(conv(torch.ones(1, 1, 9, 9))[..., 3:6, 3:6], torch.ones(1, 1, 3, 3))


def test_dilation_resolves_its_layers_on_each_unet(sdxl_unet: Any) -> None:
    with patched(sdxl_unet, [restrained_dilation("down_mid", (2, 2))]):
        dilated = [n for n, m in sdxl_unet.named_modules() if getattr(m, "dilation", None) == (2, 2)]
    assert tuple(dilated) == dilated_layers(sdxl_unet)
    assert len(dilated) == 9
