"""Metrics of videos against values worked out by hand and loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stages.metrics.videos import (
    aesthetic_pixels,
    aesthetic_score,
    dynamics,
    flicker,
    i3d_input,
    pair_score,
    warp_error,
)


def still(count: int, size: tuple[int, int]) -> list[Tensor]:
    return [torch.zeros(3, *size, dtype=torch.uint8) for _ in range(count)]


class Given:
    """A flow that says what it is told to, pair by pair, uniformly."""

    def __init__(self, lengths: list[float]) -> None:
        self.lengths, self.pairs = lengths, 0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        length = self.lengths[self.pairs]
        self.pairs += 1
        return torch.stack([torch.full(first.shape[-2:], length), torch.zeros(first.shape[-2:])])


def test_a_uniform_flow_scores_its_length() -> None:
    assert pair_score(torch.tensor([3.0, 4.0])[:, None, None].expand(2, 20, 30)) == 5.0


def test_the_fastest_twentieth_counts() -> None:
    flow = torch.zeros(2, 20, 30)
    flow[0].view(-1)[torch.randperm(600, generator=torch.Generator().manual_seed(1))[:30]] = 7.0
    assert pair_score(flow) == 7.0


@pytest.mark.parametrize(("moving", "is_dynamic"), [(4, True), (3, False)])
def test_threshold_and_count_at_640x1024(moving: int, is_dynamic: bool) -> None:
    """15 pixels at a shorter side of 640; of 16 frames at 8 a second four pairs must move."""
    flow = Given([15.1] * moving + [14.9] * (15 - moving))
    found = dynamics(still(16, (640, 1024)), 8, flow)
    assert (found.threshold, found.needed, flow.pairs) == (15.0, 4, 15)
    assert found.is_dynamic is is_dynamic


def test_the_threshold_itself_is_no_motion() -> None:
    assert not dynamics(still(16, (256, 256)), 8, Given([6.0] * 15)).is_dynamic


@pytest.mark.parametrize(
    ("fps", "pairs", "needed"), [(8, 15, 4), (10, 15, 4), (16, 7, 2), (24, 5, 2), (28, 3, 1), (30, 3, 1)]
)
def test_kept_frames_follow_the_playback_rate(fps: int, pairs: int, needed: int) -> None:
    flow = Given([0.0] * 15)
    assert dynamics(still(16, (320, 512)), fps, flow).needed == needed
    assert flow.pairs == pairs
    assert dynamics(still(16, (320, 512)), fps, Given([0.0] * 15)).threshold == 7.5


def test_flicker_is_the_mean_step_in_levels() -> None:
    levels = [10, 14, 14, 4]
    frames = [torch.full((3, 4, 4), level, dtype=torch.uint8) for level in levels]
    assert flicker(frames) == pytest.approx((4 + 0 + 10) / 3)
    assert flicker(frames[:1]) == 0.0


def test_what_moves_as_the_flow_says_costs_nothing_and_what_boils_does() -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")

    def at(shift: float) -> Tensor:
        return torch.stack([100 + 50 * torch.sin((columns - shift) / 4), rows, 2 * columns - 2 * shift])

    moving = [at(2.0 * index) for index in range(4)]
    assert warp_error(moving, lambda a, b: torch.stack([torch.full((24, 32), 2.0), torch.zeros(24, 32)])) < 1e-3
    assert warp_error(moving, lambda a, b: torch.zeros(2, 24, 32)) > 2.0


def test_aesthetic_head() -> None:
    """The weight e1: the first coordinate of the embedding, made of length 1, over ten."""
    weight = torch.zeros(1, 4)
    weight[0, 0] = 1.0
    score = aesthetic_score(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]), weight, torch.tensor([5.0]))
    assert score == pytest.approx((0.6 + 5 + 0 + 5) / 2 / 10)


def test_aesthetic_sees_the_middle_in_8_bits() -> None:
    frame = torch.zeros(3, 448, 800, dtype=torch.uint8)
    frame[:, :, 176:624] = 200  # the middle square alone is seen
    found = aesthetic_pixels(frame)
    assert found.shape == (3, 224, 224)
    for channel, (mean, std) in enumerate(
        [(0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711)]
    ):
        assert torch.allclose(found[channel, :, 8:-8], torch.tensor((200 / 255 - mean) / std), atol=1e-5)
    noise = torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    levels = aesthetic_pixels(noise) * torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    levels = (levels + torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)) * 255
    assert (levels - levels.round()).abs().max() < 1e-3  # rounded to 8 bits before CLIP's own scale
    assert levels.min() > -1e-3
    assert levels.max() < 255.001


def test_i3d_reads_squashed_frames() -> None:
    frames = [torch.full((3, 30, 50), level, dtype=torch.uint8) for level in (0, 255)]
    found = i3d_input(frames)
    assert found.shape == (3, 2, 224, 224)
    assert (found[:, 0] + 1).abs().max() < 1e-5
    assert (found[:, 1] - 1).abs().max() < 1e-5
    stripes = torch.zeros(3, 1, 9 * 224)  # sampled at every ninth column, black and white by turns
    stripes[..., ::2] = 255
    frame = stripes.expand(3, 224, 9 * 224).to(torch.uint8)
    assert i3d_input([frame]).abs().min() > 0.99  # aliased, as published numbers have it
    assert i3d_input([frame], "antialias").abs().max() < 0.2
    assert math.isclose(float(i3d_input([frame], "antialias").mean()), 0.0, abs_tol=0.02)
