"""A dilated convolution on phases is the dilated convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from freescale.compute import Compute
from freescale.dilation import dilated_layers
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import FreeScale
from freescale.phase_convs import dilate_on_phases, phase_conv
from freescale.schedule import make_schedule
from freescale.unet_patches import dilated, patched
from tests.toys import is_same, level_at, render, snapshot


def conv_of(dtype: torch.dtype, stride: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(5, 7, 3, stride=stride, padding=1).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 3), (4, 4), (2, 4), (3, 1), (5, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(12, 16), (13, 9), (7, 20), (3, 2)])
def test_equals_dilation(factor: tuple[int, int], stride: int, size: tuple[int, int]) -> None:
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):  # sums of 45 products of size 1
        conv, x = conv_of(dtype, stride), normal((2, 5, *size), 1).to(dtype)
        with dilated(conv, factor):
            expected = conv(x)
        torch.testing.assert_close(phase_conv(conv, x, factor), expected, atol=atol, rtol=0)


def test_in_a_unet(sdxl_unet: Any, conditioning: Conditioning) -> None:
    names, before = dilated_layers(sdxl_unet), snapshot(sdxl_unet)
    with patched(sdxl_unet, [dilate_on_phases(names, (2, 2))]):
        assert not is_same(before, snapshot(sdxl_unet))
    assert is_same(before, snapshot(sdxl_unet))


def test_as_an_option_of_a_render(sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any) -> None:
    schedule = make_schedule(scheduler_config, 4)
    plain = Denoiser(sdxl_unet, conditioning, 4.0)
    method = FreeScale(restart=0.5, dilation=(0.0, 0.75))
    usual = render(plain, method, level_at(1), schedule)
    on_phases = render(replace(plain, compute=Compute(phase_convs=True)), method, level_at(1), schedule)
    torch.testing.assert_close(on_phases, usual, atol=1e-3, rtol=0)  # latents of size 15, float32, two steps
    assert not torch.equal(render(plain, replace(method, dilate=False), level_at(1), schedule), usual)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: a plain 3 x 3 one with padding 1"):
        phase_conv(nn.Conv2d(2, 2, 5, padding=2), torch.zeros(1, 2, 8, 8), (2, 2))
