"""More frames than were trained for: noise used again in another order, attention over frames in windows."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import freescale.long_videos as long_videos
from freescale.cascade import Level
from freescale.forward_process import normal
from freescale.guidance import Denoiser
from freescale.long_videos import (
    TemporalWindows,
    frame_order,
    frame_windows,
    temporal_blocks,
    temporal_patches,
    video_noise,
    window_temporal_attention,
)
from freescale.methods import Direct, FreeScale
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.schedule import make_schedule
from freescale.unet_patches import patched
from tests.oracles import videos as oracle
from tests.toys import is_same, snapshot, video_text, video_unet

NATIVE = 4


class TestNoise:
    def test_is_plain_up_to_the_training_length(self) -> None:
        for shape in [(1, 4, 8, 10), (1, 4, 3, 8, 10), (1, 4, NATIVE, 8, 10)]:
            assert torch.equal(video_noise(shape, NATIVE, 7, "init_noise", 0), normal(shape, 7, "init_noise", 0))
        long = (1, 4, 9, 2, 2)
        assert torch.equal(video_noise(long, None, 7), normal(long, 7))

    @given(frames=st.integers(5, 40), native=st.integers(1, 16), stride=st.integers(1, 16))
    def test_order(self, frames: int, native: int, stride: int) -> None:
        """Every stretch is a shuffle of the stretch one training length before it."""
        stride = min(stride, native)
        order = frame_order(frames, native, stride, 7, "noise").tolist()
        assert len(order) == frames
        assert order[:native] == list(range(min(native, frames)))
        for first in range(native, frames - stride + 1, stride):
            assert Counter(order[first : first + stride]) == Counter(order[first - native : first - native + stride])

    def test_is_keyed_and_of_unit_variance(self) -> None:
        shape = (1, 4, 11, 16, 20)
        noise = video_noise(shape, NATIVE, 7, "a", stride=2)
        assert torch.equal(noise, video_noise(shape, NATIVE, 7, "a", stride=2))
        assert not torch.equal(noise, video_noise(shape, NATIVE, 8, "a", stride=2))
        assert noise.std().item() == pytest.approx(1.0, abs=0.03)
        drawn = noise[:, :, :NATIVE]
        for f in range(NATIVE, 11):
            assert any(torch.equal(noise[:, :, f], drawn[:, :, k]) for k in range(NATIVE))
        orders = {tuple(frame_order(64, 16, 4, seed).tolist()) for seed in range(5)}
        assert len(orders) == 5

    def test_a_method_starts_from_it(self, scheduler_config: Any) -> None:
        level = Level(0, (64, 80), (64, 80), frames=NATIVE)
        moment = Moment(level, 0, make_schedule(scheduler_config, 4), 7)
        start = Direct().start((1, 4, 6, 8, 10), moment)
        expected = video_noise((1, 4, 6, 8, 10), NATIVE, 7, "init_noise", 0)
        assert torch.equal(start, expected * moment.schedule.init_sigma)


@given(frames=st.integers(1, 60), window=st.integers(1, 16), stride=st.integers(1, 16))
def test_windows_cover_every_frame(frames: int, window: int, stride: int) -> None:
    window = min(window, frames)
    firsts = frame_windows(frames, window, min(stride, window))
    assert firsts[0] == 0
    assert firsts[-1] == frames - window
    assert {f for first in firsts for f in range(first, first + window)} == set(range(frames))
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(firsts))


def once(attention: Any, x: Tensor) -> Any:
    return attention(x[None])[0]


OTHERS = [pytest.param(kind, marks=pytest.mark.thorough) for kind in ("modelscope", "animatediff-sdxl")]
KINDS = ["videocrafter2", "animatediff", *OTHERS]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_attention_against_its_definition(kind: str) -> None:
    """Each attention over frames, in float64, for 11 frames: more than the positions' table has."""
    import copy

    unet = copy.deepcopy(video_unet(kind)).double()
    blocks = [b for name, b in temporal_blocks(unet) if name.startswith(("transformer_in", "down_blocks.1"))]
    assert len(blocks) >= 2
    for block in blocks:
        attention, positions = block.attn1, block.pos_embed
        layer = partial(once, attention)
        tokens = normal((2, 11, attention.to_q.in_features), 1).double()
        table = torch.zeros(NATIVE, 1) if positions is None else positions.pe[0, :NATIVE].double()
        processor = TemporalWindows(attention.processor, NATIVE, 3, positions)
        with torch.no_grad():
            output = processor(attention, tokens)
            for row in range(2):
                expected = oracle.windowed(layer, tokens[row], NATIVE, 3, table)
                assert (output[row] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
class TestUNet:
    def test_up_to_the_training_length_it_is_plain(self, kind: str) -> None:
        level = Level(0, (64, 80), (64, 80), frames=NATIVE)
        for shape in [(1, 4, 8, 10), (1, 4, 3, 8, 10), (1, 4, NATIVE, 8, 10)]:
            assert list(temporal_patches(torch.zeros(shape), level)) == []
        assert list(temporal_patches(torch.zeros(1, 4, 9, 8, 10), dataclasses.replace(level, frames=None))) == []

    @pytest.mark.thorough
    def test_all_attention_over_frames_is_windowed(self, kind: str) -> None:
        """And nothing else; and one window of all frames is the layer itself; no trace is left, also of a failure."""
        unet = video_unet(kind)
        before = snapshot(unet)
        found = {name for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))}
        spatial = {name for name in found if ".attentions." in name}
        with patched(unet, [window_temporal_attention(NATIVE, 1)]):
            windowed = {
                name
                for name, module in unet.named_modules()
                if isinstance(getattr(module, "processor", None), TemporalWindows)
            }
        assert windowed == found - spatial
        assert is_same(before, snapshot(unet))
        with pytest.raises(RuntimeError, match="inside"), patched(unet, [window_temporal_attention(NATIVE, 1)]):
            raise RuntimeError("inside")
        assert is_same(before, snapshot(unet))
        text, latents = video_text(kind), normal((1, 4, NATIVE, 8, 10), 1)
        denoiser, schedule = Denoiser(unet, text, 4.0), make_schedule({}, 4)
        with torch.no_grad():
            plain = denoiser(latents, 1, schedule)
            with patched(unet, [window_temporal_attention(NATIVE, 1)]):
                one = denoiser(latents, 1, schedule)
        assert (plain - one).abs().max() < 1e-4

    @pytest.mark.thorough
    def test_a_long_video(self, kind: str, scheduler_config: Any) -> None:
        """11 frames of a model for 4: differs from attending to all, resumes to the same bits, leaves no trace."""
        level = Level(0, (64, 80), (64, 80), frames=NATIVE)
        denoiser, schedule = Denoiser(video_unet(kind), video_text(kind)), make_schedule(scheduler_config, 2)
        before = snapshot(denoiser.network)
        start = Direct().start((1, 4, 11, 8, 10), Moment(level, 0, schedule, 7))
        steps = list(denoise(denoiser, start, schedule, FreeScale(freeu=None), level, seed=7))
        assert is_same(before, snapshot(denoiser.network))
        resumed = list(denoise(denoiser, steps[0].latents, schedule, FreeScale(freeu=None), level, seed=7, start=1))
        assert torch.equal(steps[-1].latents, resumed[-1].latents)
        assert steps[-1].latents.isfinite().all()
        if kind in ("videocrafter2", "modelscope"):  # the others know no more than 8 positions
            whole = dataclasses.replace(level, frames=None)
            plain = list(denoise(denoiser, start, schedule, FreeScale(freeu=None), whole, seed=7))
            assert (plain[-1].latents - steps[-1].latents).abs().max() > 1e-5

    def test_rows_in_chunks(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sizes beyond what a fused kernel takes at once: the same prediction, for short videos and long ones."""
        denoiser, schedule = Denoiser(video_unet(kind), video_text(kind), 4.0), make_schedule({}, 4)
        for frames in (3, 6):
            level = Level(0, (64, 80), (64, 80), frames=NATIVE)
            latents = normal((1, 4, frames, 8, 10), 1)
            with torch.no_grad(), patched(denoiser.network, temporal_patches(latents, level)):
                plain = denoiser(latents, 1, schedule)
            monkeypatch.setattr(long_videos, "MOST_ROWS", 50)
            with torch.no_grad(), patched(denoiser.network, temporal_patches(latents, level)):
                chunked = denoiser(latents, 1, schedule)
            monkeypatch.undo()
            assert (plain - chunked).abs().max() < 1e-5


def test_strides_that_leave_gaps() -> None:
    for stride in (0, 5):
        with pytest.raises(ValueError, match="stride of temporal windows"):
            window_temporal_attention(4, stride)
