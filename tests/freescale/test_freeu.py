"""FreeU: the filter against Fourier transforms, the layers it reaches, and no trace."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freescale import freeu as freeu_module
from freescale.freeu import freeu, scale_lowest, touched_resnets
from freescale.guidance import Denoiser
from freescale.methods import METHODS
from freescale.schedule import make_schedule
from freescale.unet_patches import patched
from tests.oracles import freeu as oracle
from tests.toys import level_at, render


@given(h=st.integers(2, 9), w=st.integers(2, 9), factor=st.floats(0.0, 2.0))
def test_filter_equals_four_explicit_coefficients(h: int, w: int, factor: float) -> None:
    y = torch.randn(1, 1, h, w, generator=torch.Generator().manual_seed(h * w), dtype=torch.float64)
    slow = oracle.scale_lowest(y[0, 0], factor)
    torch.testing.assert_close(scale_lowest(y, factor)[0, 0], slow, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (15, 33), (2, 5), (1, 6), (7, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filter_equals_the_transform_of_diffusers(size: tuple[int, int], dtype: torch.dtype) -> None:
    from diffusers.utils.torch_utils import fourier_filter

    y = torch.randn(2, 3, *size).to(dtype)
    slow = fourier_filter(y, threshold=1, scale=0.6)
    atol = 2e-6 if dtype == torch.float32 else 4e-2  # a bfloat16 of size 4 has steps of 3e-2
    torch.testing.assert_close(scale_lowest(y, 0.6), slow, atol=atol, rtol=0)


def test_only_four_coefficients_change() -> None:
    """Their mirror images change with them, since the real part is taken; the rest stays."""
    y = torch.randn(1, 1, 8, 9, dtype=torch.float64)
    ratio = torch.fft.fft2(scale_lowest(y, 0.5)) / torch.fft.fft2(y)
    changed = {(f % 8, k % 9) for f in (-1, 0, 1) for k in (-1, 0, 1)} - {(1, 8), (7, 1)}
    for f in range(8):
        for k in range(9):
            is_kept = bool(torch.isclose(ratio[0, 0, f, k], torch.tensor(1.0 + 0j, dtype=torch.complex128)))
            assert is_kept == ((f, k) not in changed)
    torch.testing.assert_close(ratio[0, 0, 0, 0].real, torch.tensor(0.5, dtype=torch.float64))


def test_layers_of_sdxl_and_stable_diffusion(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    def touched(unet: Any) -> dict[str, tuple[int, bool]]:
        names = {id(module): name for name, module in unet.named_modules()}
        return {names[id(r)]: (channels, widest) for r, channels, widest in touched_resnets(unet)}

    assert touched(full_sdxl_unet) == {
        "up_blocks.0.resnets.0": (1280, True),
        "up_blocks.0.resnets.1": (1280, True),
        "up_blocks.0.resnets.2": (1280, True),
        "up_blocks.1.resnets.0": (1280, True),
        "up_blocks.1.resnets.1": (640, False),
        "up_blocks.1.resnets.2": (640, False),
        "up_blocks.2.resnets.0": (640, False),
    }
    by_width = touched(full_sd_unet)
    assert sum(widest for _, widest in by_width.values()) == 7
    assert sorted({channels for channels, _ in by_width.values()}) == [640, 1280]
    assert by_width["up_blocks.3.resnets.0"] == (640, False)


@pytest.mark.parametrize("part", [2**27, 60, 1])
def test_what_the_layers_receive(sdxl_unet: Any, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the backbone times b, the skip filtered, in parts or whole; what was joined is not written to."""
    monkeypatch.setattr(freeu_module, "PART", part)
    backbone, skip = torch.randn(1, 64, 6, 5), torch.randn(1, 64, 6, 5)
    kept = backbone.clone(), skip.clone()
    block = sdxl_unet.up_blocks[0].resnets[0]
    seen: list[torch.Tensor] = []
    try:
        with torch.no_grad(), patched(sdxl_unet, [freeu(1.5, 1.0, 0.5, 1.0)]):
            block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            block(torch.cat([backbone, skip], 1), torch.randn(1, 64))
    finally:
        block._forward_pre_hooks.clear()
    assert torch.equal(backbone, kept[0])
    assert torch.equal(skip, kept[1])
    assert torch.equal(seen[0][:, :32], kept[0][:, :32] * 1.5)
    assert torch.equal(seen[0][:, 32:64], kept[0][:, 32:])
    assert torch.equal(seen[0][:, 64:], scale_lowest(kept[1], 0.5))


WITH_FREEU = [name for name, kind in METHODS.items() if "freeu" in {f.name for f in dataclasses.fields(kind)}]


@pytest.mark.parametrize("name", WITH_FREEU)
def test_it_goes_with_any_method(name: str, sdxl_unet: Any, conditioning: Any, scheduler_config: Any) -> None:
    """The field alone turns it on; a method has no line of its own for it."""
    scales = (1.3, 1.1, 0.5, 0.7)
    schedule, denoiser = make_schedule(scheduler_config, 2), Denoiser(sdxl_unet, conditioning, 4.0)
    plain, free = (render(denoiser, METHODS[name](freeu=given), level_at(0), schedule) for given in (None, scales))
    with patched(sdxl_unet, [freeu(*scales)]):
        patched_by_hand = render(denoiser, METHODS[name](freeu=None), level_at(0), schedule)
    assert torch.equal(free, patched_by_hand)
    assert not torch.equal(free, plain)


def test_ones_change_nothing(sdxl_unet: Any, conditioning: Any) -> None:
    def run() -> torch.Tensor:
        with torch.no_grad():
            text = conditioning
            return sdxl_unet(z, 5, text.prompt_embeds, added_cond_kwargs=text.added).sample

    z = torch.randn(1, 4, 8, 10)
    plain = run()
    with patched(sdxl_unet, [freeu(1.0, 1.0, 1.0, 1.0)]):
        assert torch.equal(run(), plain)
    with patched(sdxl_unet, [freeu(1.1, 1.2, 0.6, 0.4)]):
        assert not torch.equal(run(), plain)
    assert torch.equal(run(), plain)
