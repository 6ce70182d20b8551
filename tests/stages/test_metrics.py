"""The statistics of the metrics: closed forms, published identities, and what must hold whatever the order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freescale.forward_process import generator
from stages.metrics.bootstrap import interval
from stages.metrics.clip_score import clip_score
from stages.metrics.crops import grid_boxes, random_boxes
from stages.metrics.frechet import frechet_distance, frechet_of_moments, frechet_of_rows, frechet_of_states
from stages.metrics.inception_score import inception_score
from stages.metrics.kid import KernelSums, kernel, kernel_distance, mmd2
from stages.metrics.resize import resize
from stages.metrics.statistics import GaussianState

if TYPE_CHECKING:
    from torch import Tensor

EYE = torch.eye(5, dtype=torch.float64)


def rows(n: int, d: int, *purpose: str | int) -> Tensor:
    return torch.randn(n, d, generator=generator(0, "test rows", *purpose), dtype=torch.float64)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 99))
def test_any_split_and_any_merge_gives_the_whole(sizes: list[int], seed: int) -> None:
    whole = 3 + 2 * rows(sum(sizes) + 2, 4, seed)
    parts = torch.split(whole, [*sizes, 2])
    chain, tree = GaussianState(4), [GaussianState(4).update(part) for part in parts]
    for part in parts:
        chain.update(part)
    while len(tree) > 1:
        tree = [*tree[2:], tree[0].merge(tree[1])]
    for state in (chain, tree[0]):
        assert state.count == len(whole)
        assert torch.allclose(state.mean, whole.mean(0), atol=1e-12)
        assert torch.allclose(state.covariance, torch.cov(whole.T), atol=1e-9)


def test_a_large_mean_does_not_eat_the_spread() -> None:
    far, near = 1000 + 0.01 * rows(4000, 3), 0.01 * rows(4000, 3)
    state = GaussianState(3).update(far[:1500]).merge(GaussianState(3).update(far[1500:]))
    assert torch.allclose(state.covariance, torch.cov(near.T), rtol=0, atol=1e-14)


def test_a_state_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not finite"):
        GaussianState(2).update(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        GaussianState(2).update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        GaussianState(2).merge(GaussianState(3))
    with pytest.raises(ValueError, match="at least 2 rows, not 1"):
        _ = GaussianState(2).update(torch.zeros(1, 2)).covariance


ZERO3, THREE, OTHER3 = torch.zeros(3), torch.diag(torch.tensor([1.0, 4, 9])), torch.diag(torch.tensor([4.0, 4, 1]))
PAIR = torch.tensor([[2, 0.5], [0.5, 1]]), torch.tensor([[1, 0.3], [0.3, 2]])


@pytest.mark.parametrize(
    ("mean_a", "cov_a", "mean_b", "cov_b", "distance"),
    [
        (torch.zeros(5), EYE, torch.arange(5.0), EYE, 30.0),
        (torch.zeros(5), 4 * EYE, torch.zeros(5), EYE, 5.0),
        (ZERO3, THREE, ZERO3, OTHER3, 5.0),
        (torch.tensor([1.0, 2]), PAIR[0], torch.zeros(2), PAIR[1], 5.3585458),
    ],
)
def test_frechet_closed_forms(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, distance: float) -> None:
    assert frechet_of_moments(mean_a, cov_a, mean_b, cov_b) == pytest.approx(distance, abs=2e-6)
    assert frechet_of_moments(mean_b, cov_b, mean_a, cov_a) == pytest.approx(distance, abs=2e-6)


@pytest.mark.parametrize("n", [8, 20, 60])
def test_frechet_has_one_value_in_both_forms(n: int) -> None:
    x, y = rows(n, 20, "x"), 1.3 * rows(n + 3, 20, "y") + 0.2
    states = [GaussianState(20).update(r) for r in (x, y)]
    assert frechet_of_states(*states) == pytest.approx(frechet_of_rows(x, y), rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(frechet_of_rows(x, y), rel=1e-6)


def test_frechet_symmetry_rotation_scale_and_self() -> None:
    x, y = rows(40, 6, "x"), rows(50, 6, "y") + 0.5
    turn = torch.linalg.qr(rows(6, 6, "turn"))[0]
    there = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(there, rel=1e-9)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(there, rel=1e-9)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * there, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_of_finite_samples_falls_with_their_number() -> None:
    found = [frechet_distance(rows(n, 30, "a"), rows(n, 30, "b")) for n in (20, 80, 320)]
    assert found[0] > found[1] > found[2] > 0


def test_kid_by_hand_and_with_itself() -> None:
    x, y = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 0]])
    assert mmd2(x, y) == pytest.approx(-2.375, abs=1e-14)
    same, m = rows(50, 8), 50
    assert mmd2(same, same, biased=True) == pytest.approx(0, abs=1e-12)
    total, trace = float(kernel(same, same).sum()), float(kernel(same, same).trace())
    assert mmd2(same, same) == pytest.approx(2 * (total - trace) / (m * (m - 1)) - 2 * total / m**2, rel=1e-12)


def test_kid_is_unbiased_at_any_size_and_sees_a_shift() -> None:
    """The mean over many small independent draws is zero within three of its own standard errors."""
    found = torch.tensor([mmd2(rows(10, 4, "x", i), rows(10, 4, "y", i)) for i in range(400)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 20
    biased = torch.tensor([mmd2(rows(10, 4, "x", i), rows(10, 4, "y", i), biased=True) for i in range(400)])
    assert float(biased.mean()) > 10 * float(found.std()) / 20
    assert mmd2(rows(300, 4, "x"), rows(300, 4, "y") + 1) > 1


def test_kid_subsets_are_seeded_and_agree_with_the_whole() -> None:
    x, y = rows(300, 6, "x"), rows(250, 6, "y") + 0.3
    drawn = kernel_distance(x, y, subsets=200, size=100, seed=4)
    assert drawn == kernel_distance(x, y, subsets=200, size=100, seed=4)
    assert drawn != kernel_distance(x, y, subsets=200, size=100, seed=5)
    assert drawn.std is not None
    assert drawn.value == pytest.approx(mmd2(x, y), abs=3 * drawn.std / math.sqrt(200) + 0.02)
    assert kernel_distance(x, y, size=300) == (type(drawn))(mmd2(x, y), None, 1)


def test_kernel_sums_of_crops_are_the_distance_of_their_rows() -> None:
    x, y = rows(24, 5, "x"), rows(15, 5, "y")
    x_owner, y_owner = torch.arange(24) // 4, torch.arange(15) // 3
    sums = KernelSums.of(x, x_owner, y, y_owner)
    assert sums.mmd2(torch.ones(6), torch.ones(5)) == pytest.approx(mmd2(x, y), rel=1e-12)
    drawn = torch.tensor([0, 0, 3, 5])
    repeated = torch.cat([x[x_owner == i] for i in drawn])
    assert sums.mmd2(torch.bincount(drawn, minlength=6), torch.ones(5)) == pytest.approx(mmd2(repeated, y), rel=1e-12)


def test_inception_score_of_known_cases() -> None:
    assert inception_score(torch.ones(20, 6), splits=1) == pytest.approx((1, 0))
    sharp = 1e4 * torch.eye(7).repeat_interleave(3, dim=0)
    assert inception_score(sharp, splits=1)[0] == pytest.approx(7)
    assert inception_score(sharp.repeat(10, 1), splits=5)[0] > 6  # in order, each part would hold two classes at most
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    mean = p.mean(0)
    wanted = math.exp(float((p * (p / mean).log()).sum(1).mean()))
    assert inception_score(p.log(), splits=1)[0] == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="from 1 to the number of rows, 3, not 4"):
        inception_score(torch.zeros(3, 2), splits=4)


def test_clip_score_is_a_clamped_cosine() -> None:
    images = torch.tensor([[1.0, 0], [0, 2], [1, 1]])
    texts = torch.tensor([[3.0, 0], [0, -1], [1, 0]])
    assert clip_score(images, texts).tolist() == pytest.approx([100, 0, 100 / math.sqrt(2)])
    with pytest.raises(ValueError, match="3 pictures and 2 prompts"):
        clip_score(images, texts[:2])


@pytest.mark.parametrize(("height", "width"), [(299, 299), (64, 40), (700, 500)])
def test_resize_is_pillows_antialiased_bicubic_in_float(height: int, width: int) -> None:
    g = generator(0, "picture", height)
    pixels = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
    ours = resize(pixels[None], (128, 112))[0]
    for channel, plane in zip(ours, pixels, strict=True):
        theirs = Image.fromarray(plane.float().numpy()).resize((112, 128), Image.Resampling.BICUBIC)
        wanted = torch.from_numpy(np.array(theirs)).clamp(0, 255)
        assert (channel - wanted).abs().max() < 2e-3


def test_resize_leaves_its_own_size_alone() -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=generator(0, "same"), dtype=torch.uint8)
    assert torch.equal(resize(pixels, (16, 16)), pixels.float())
    with pytest.raises(ValueError, match="not \\(B, 3, H, W\\)"):
        resize(pixels[0], (8, 8))


@pytest.mark.thorough
@given(st.tuples(st.integers(32, 200), st.integers(32, 200)), st.integers(1, 32), st.integers(0, 9))
def test_crops_lie_inside_and_depend_on_seed_and_picture_alone(size: tuple[int, int], side: int, seed: int) -> None:
    boxes = random_boxes(size, side, 5, seed, "3-0")
    for box in [*boxes, *grid_boxes(size, side)]:
        assert 0 <= box.top <= size[0] - side
        assert 0 <= box.left <= size[1] - side
    assert boxes[:3] == random_boxes(size, side, 3, seed, "3-0")
    if min(size) - side > 20:
        assert boxes != random_boxes(size, side, 5, seed, "4-0")
    covered = torch.zeros(size)
    for box in grid_boxes(size, side):
        box.of(covered).add_(1)
    assert covered.max() == 1
    assert covered.sum() == (size[0] // side) * (size[1] // side) * side**2


def test_a_picture_of_the_crops_size_is_taken_once() -> None:
    assert random_boxes((64, 64), 64, 10, 0, "a") == [(0, 0, 64, 64)]
    with pytest.raises(ValueError, match="64 pixels do not fit in a picture of 100x60"):
        random_boxes((60, 100), 64, 10, 0, "a")


def test_intervals_are_seeded_and_cover_what_they_should() -> None:
    values = rows(50, 1)[:, 0]
    mean = lambda drawn: float(values[drawn].mean())  # noqa: E731
    found = interval(float(values.mean()), mean, (50,), draws=400, seed=2)
    assert found == interval(float(values.mean()), mean, (50,), draws=400, seed=2)
    assert found != interval(float(values.mean()), mean, (50,), draws=400, seed=3)
    assert found.std == pytest.approx(float(values.std(correction=0)) / math.sqrt(50), rel=0.15)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.std, rel=0.15)
    share = torch.tensor([1.0] * 7 + [0.0])
    plain = interval(0.875, lambda drawn: float(share[drawn].mean()), (8,), draws=50, shifted=False)
    assert 0 <= plain.low < plain.high <= 1
    inside = 0
    for index in range(100):
        sample = rows(40, 1, "coverage", index)[:, 0]
        around = interval(float(sample.mean()), lambda d, s=sample: float(s[d].mean()), (40,), 100, index)  # type: ignore[misc]
        inside += around.low <= 0 <= around.high
    assert 86 <= inside <= 100
    with pytest.raises(ValueError, match="at least 2 pictures, not 200 of 1"):
        interval(0.0, mean, (1,))
