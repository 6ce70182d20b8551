"""Patches reach what they name and leave no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from freescale.cascade import Level
from freescale.freeu import freeu_patches
from freescale.methods import FreeScale
from freescale.moment import Moment
from freescale.schedule import make_schedule
from freescale.unet_patches import (
    dilate_convs,
    patched,
    record_token_grids,
    replace_self_attention,
    spatial_self_attentions,
)
from tests.toys import is_same, snapshot

if TYPE_CHECKING:
    from freescale.guidance import Conditioning

CONV = "down_blocks.1.downsamplers.0.conv"


def every_patch() -> list[Any]:
    """FreeU, recorded grids, scale fusion and dilation, as FreeScale has them in the middle of a level."""
    schedule, method = make_schedule({}, 10), FreeScale()
    return [*freeu_patches(method.freeu), *method.patches(Moment(Level(1, (128, 160), (64, 80)), 4, schedule, 0))]


def run(unet: Any, text: Conditioning, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        sample: torch.Tensor = unet(latents, 5, text.prompt_embeds, added_cond_kwargs=text.added).sample
    return sample


def test_patches_leave_no_trace(sdxl_unet: Any, conditioning: Conditioning) -> None:
    before, processors = snapshot(sdxl_unet), sdxl_unet.attn_processors
    latents = torch.randn(1, 4, 16, 20)
    plain = run(sdxl_unet, conditioning, latents)
    with patched(sdxl_unet, every_patch()):
        assert not is_same(before, snapshot(sdxl_unet))
        assert not torch.equal(run(sdxl_unet, conditioning, latents), plain)
    assert is_same(before, snapshot(sdxl_unet))
    assert all(sdxl_unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(run(sdxl_unet, conditioning, latents), plain)


def test_patches_leave_no_trace_of_a_failure(sdxl_unet: Any) -> None:
    before = snapshot(sdxl_unet)
    for doomed in range(len(every_patch()) + 1):
        patches = every_patch()
        patches.insert(doomed, dilate_convs(["no.such.layer"], (2, 2)))
        with pytest.raises(ValueError, match=r"no\.such\.layer"), patched(sdxl_unet, patches):
            pass
        assert is_same(before, snapshot(sdxl_unet))
    with pytest.raises(RuntimeError, match="body"), patched(sdxl_unet, every_patch()):
        raise RuntimeError("body")
    assert is_same(before, snapshot(sdxl_unet))


def test_processors_that_are_modules_come_back(sdxl_unet: Any) -> None:
    """Adapters keep weights in a processor, which is then a child of the layer."""

    class WithWeights(nn.Module):
        def forward(self, *_: Any) -> None:
            return None

    _, attention = spatial_self_attentions(sdxl_unet)[0]
    original, adapter = attention.processor, WithWeights()
    attention.set_processor(adapter)
    try:
        before = snapshot(sdxl_unet)
        with patched(sdxl_unet, [replace_self_attention(lambda _, inner: lambda *args: inner(*args))]):
            assert not isinstance(attention.processor, nn.Module)
        assert attention.processor is adapter
        assert is_same(before, snapshot(sdxl_unet))
    finally:
        attention.set_processor(original)


def test_patches_are_undone_in_reverse(sdxl_unet: Any) -> None:
    conv = sdxl_unet.get_submodule(CONV)
    with patched(sdxl_unet, [dilate_convs([CONV], (2, 2)), dilate_convs([CONV], (3, 1))]):
        assert (conv.dilation, conv.padding) == ((3, 1), (6, 2))
    assert (conv.dilation, conv.padding) == ((1, 1), (1, 1))


def test_self_attentions_of_sdxl(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    names = [name for name, _ in spatial_self_attentions(full_sdxl_unet)]
    assert len(names) == 70
    assert sum(name.startswith("mid_block") for name in names) == 10
    assert len(spatial_self_attentions(full_sd_unet)) == 16


def test_video_keeps_its_attention_over_frames(video_unet: Any) -> None:
    names = [name for name, _ in spatial_self_attentions(video_unet)]
    assert len(names) == 4  # one down, one in the middle, two up
    everything = [name for name in video_unet.attn_processors if ".attn1." in name]
    assert len(everything) > 2 * len(names)
    assert not any("temp_attentions" in name or "transformer_in" in name for name in names)


def test_grids_are_those_the_layers_see(sdxl_unet: Any, conditioning: Conditioning) -> None:
    grids: dict[str, tuple[int, int]] = {}
    with patched(sdxl_unet, [record_token_grids(grids)]):
        run(sdxl_unet, conditioning, torch.randn(1, 4, 33, 18))
    by_block = {(name.split(".attentions")[0], grid) for name, grid in grids.items()}
    assert by_block == {
        ("down_blocks.1", (17, 9)),
        ("down_blocks.2", (9, 5)),
        ("mid_block", (9, 5)),
        ("up_blocks.0", (9, 5)),
        ("up_blocks.1", (17, 9)),
    }


def test_dilation_reaches_through_an_adapter() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Conv2d(2, 2, 3, padding=1)

    holder = nn.Module()
    holder.conv = Adapter()
    with patched(holder, [dilate_convs(["conv"], (2, 3))]):
        assert holder.conv.base_layer.dilation == (2, 3)
        assert "dilation" not in vars(holder.conv)
    assert holder.conv.base_layer.padding == (1, 1)


def test_factor_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"factor is \(1, 0\)"):
        dilate_convs([CONV], (1, 0))
