"""Savings inside the UNet change nothing: text projected once, feed-forward in parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import Direct, FreeScale
from freescale.savings import TextCache, chunk_feed_forward
from freescale.schedule import make_schedule
from freescale.unet_patches import patched
from tests.toys import is_same, level_at, render, sd_text, sd_unet, snapshot


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


def count_calls(unet: Any, ending: str) -> tuple[list[str], list[Any]]:
    """The names of the modules that run, in order, and handles to end the counting."""
    calls: list[str] = []
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(ending)]
    handles = [m.register_forward_hook(lambda *_, name=n: calls.append(name)) for n, m in found]
    return calls, handles


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", [pytest.param("direct", marks=pytest.mark.thorough), "freescale"])
def test_text_is_projected_once_a_level(name: str, split: bool, denoiser: Denoiser, scheduler_config: Any) -> None:
    method, level = {"direct": Direct(), "freescale": FreeScale()}[name], level_at(1)
    schedule = make_schedule(scheduler_config, 3)
    asked = replace(denoiser, compute=Compute(split_guidance=split), text_cache=None)
    plain = render(asked, method, level, schedule)
    before = snapshot(denoiser.network)
    calls, handles = count_calls(denoiser.network, "attn2.to_k")
    try:
        held = render(replace(asked, text_cache=TextCache()), method, level, schedule)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(held, plain)
    assert is_same(before, snapshot(denoiser.network))
    layers = len(handles)
    assert len(calls) == layers * (2 if split else 1), "once for each layer and each side that runs by itself"


def test_text_on_a_unet_of_another_kind(scheduler_config: Any) -> None:
    schedule = make_schedule(scheduler_config, 3)
    held = Denoiser(sd_unet("1.5"), sd_text(), 4.0)
    plain = replace(held, text_cache=None)
    assert torch.equal(render(held, Direct(), level_at(1), schedule), render(plain, Direct(), level_at(1), schedule))


def test_other_embeddings_are_not_mistaken(sdxl_unet: Any) -> None:
    layer = sdxl_unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    cache, stranger = TextCache(), normal((2, 5, 32), 1)
    held = cache.rows("both", stranger.clone)
    with torch.no_grad():
        expected = layer(held)
        assert cache.project(layer, held) is cache.project(layer, held)
        held.zero_()  # not asked again: proof that it is remembered
        assert torch.equal(cache.project(layer, held), expected)
        assert cache.project(layer, stranger) is not cache.project(layer, stranger)
        assert torch.equal(cache.project(layer, stranger), layer(stranger))
    assert cache.project(layer, held).requires_grad, "while a UNet is trained nothing is remembered"


def test_views_of_a_canvas_have_texts_of_their_own(denoiser: Denoiser) -> None:
    from freescale.methods.demofusion.views import dilated_views

    assert denoiser.for_views(dilated_views((8, 10), 2), 1).text_cache is None


@pytest.mark.parametrize("tokens", [1, 7, 64, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_feed_forward_in_parts(tokens: int, dtype: torch.dtype, sdxl_unet: Any) -> None:
    layer = sdxl_unet.down_blocks[1].attentions[0].transformer_blocks[0]
    x = normal((2, 45, 32), 1).to(dtype)
    before = snapshot(layer)
    layer.to(dtype)
    try:
        with torch.no_grad():
            whole = layer.ff(x)
            with patched(sdxl_unet, [chunk_feed_forward(tokens)]):
                parts = layer.ff(x)
    finally:
        layer.float()
    atol = 1e-10 if dtype == torch.float64 else 1e-6  # float32: sums of 128 products of size 1e-2
    torch.testing.assert_close(parts, whole, atol=atol, rtol=0)
    assert before.keys() == snapshot(layer).keys()


def test_feed_forward_never_sees_more_than_asked(denoiser: Denoiser, scheduler_config: Any) -> None:
    seen: list[int] = []
    layers = [m for n, m in denoiser.network.named_modules() if n.endswith(".ff.net.0")]
    handles = [m.register_forward_hook(lambda _, args, __: seen.append(args[0][..., 0].numel())) for m in layers]
    before, schedule = snapshot(denoiser.network), make_schedule(scheduler_config, 2)
    try:
        parts = render(replace(denoiser, compute=Compute(feed_forward_tokens=9)), Direct(), level_at(1), schedule)
    finally:
        for handle in handles:
            handle.remove()
    assert max(seen) == 9
    whole = render(denoiser, Direct(), level_at(1), schedule)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)  # of latents of size 15, through two steps
    assert set(before) == set(snapshot(denoiser.network))


def test_a_failure_leaves_no_trace(denoiser: Denoiser, scheduler_config: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("inside")

    before, in_parts = snapshot(denoiser.network), replace(denoiser, compute=Compute(feed_forward_tokens=9))
    handle = denoiser.network.mid_block.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="inside"):
            render(in_parts, Direct(), level_at(0), make_schedule(scheduler_config, 2))
    finally:
        handle.remove()
    assert is_same(before, snapshot(denoiser.network))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="feed-forward tokens is 0, allowed: 1 or more"):
        chunk_feed_forward(0)


def in_float64(unet: Any, run: Any) -> Tensor:
    """`run()` with the UNet in float64."""
    unet.double()
    try:
        result: Tensor = run()
    finally:
        unet.float()
    return result


@pytest.mark.parametrize("saving", [{"split_guidance": True}, {"feed_forward_tokens": 9}, {"window_rows": 1}], ids=str)
def test_savings_in_float64(saving: dict[str, Any], denoiser: Denoiser, scheduler_config: Any) -> None:
    """One step: in float64 every saving is within 1e-10 of none."""
    schedule = make_schedule(scheduler_config, 4)
    text = denoiser.conditioning
    added = ({n: x.double() for n, x in given.items()} for given in (text.added, text.negative_added))
    assert text.negative_embeds is not None
    double = Conditioning(text.prompt_embeds.double(), text.negative_embeds.double(), *added)
    plain = Denoiser(denoiser.network, double, 4.0)

    def run(saved: Denoiser) -> Tensor:
        return in_float64(saved.network, lambda: render(saved, FreeScale(restart=0.75), level_at(1), schedule))

    torch.testing.assert_close(run(replace(plain, compute=Compute(**saving))), run(plain), atol=1e-10, rtol=0)
