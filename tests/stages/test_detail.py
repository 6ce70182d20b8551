"""Detail by octave, sharpness and repetition: they tell drawn scenes from the same scenes made worse."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from freescale.forward_process import normal
from stages.metrics.detail import OCTAVES, WORDS, octave_energies, read_detail
from stages.metrics.score import Sample, scores
from stages.metrics.spec import make_evaluation
from stages.shapes.scenes import draw, sample_scene

SIDE, BASE, SCENES = 256, 128, range(3_100_000, 3_100_006)


def levels(image: Tensor) -> Tensor:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def drawn(scene: int, side: int = SIDE) -> Tensor:
    return draw(sample_scene(scene, 1.0), side, side)


MADE = {
    "drawn": drawn,
    "enlarged": lambda scene: F.interpolate(drawn(scene, BASE)[None], size=(SIDE, SIDE), mode="bicubic")[0],
    "blurred": lambda scene: F.avg_pool2d(F.pad(drawn(scene)[None], (2, 2, 2, 2), mode="replicate"), 5, 1)[0],
    "noisy": lambda scene: drawn(scene) + 0.1 * normal((3, SIDE, SIDE), scene),
    "copied": lambda scene: drawn(scene, BASE).repeat(1, 2, 2),
}


@cache
def readings(kind: str) -> Tensor:
    return torch.stack([read_detail(levels(MADE[kind](scene)), BASE / 1.25) for scene in SCENES])


def ratio(kind: str) -> list[float]:
    found: list[float] = (readings(kind).mean(0) / readings("drawn").mean(0)).tolist()
    return found


@pytest.mark.parametrize("kind", ["enlarged", "blurred"])
def test_what_has_no_detail_has_less(kind: str) -> None:
    finest, fine, *_ = ratio(kind)
    assert finest < 0.2
    assert fine < 0.75
    assert (readings(kind)[:, 3] < readings("drawn")[:, 3]).all(), "its edges are less sharp"


def test_noise_is_more_than_there_is() -> None:
    assert ratio("noisy")[0] > 3


def test_copies_repeat() -> None:
    assert (readings("copied")[:, 4] > 0.97).all()
    assert readings("drawn")[:, 4].median() < 0.8


def test_a_wave_is_in_the_octave_of_its_period() -> None:
    for octave, period in enumerate((3, 6, 12)):
        wave = 10 * np.cos(2 * np.pi * np.arange(240) / period) * np.ones((192, 1))
        found = octave_energies(wave)
        assert found[octave] == pytest.approx(50, rel=0.05)
        assert sum(found) - found[octave] < 2


def test_a_plain_or_tiny_picture() -> None:
    assert read_detail(torch.full((3, 32, 48), 7, dtype=torch.uint8), 16.0)[:4].tolist() == pytest.approx([0] * 4)
    assert read_detail(levels(drawn(1, 64)), 200.0)[4] == 0, "no shift is that long"
    with pytest.raises(ValueError, match="16 or more"):
        read_detail(torch.zeros(3, 8, 99, dtype=torch.uint8), 16.0)


def test_scores_are_shares_of_the_reference() -> None:
    spec = make_evaluation({"methods": ["direct"], "sizes": ["256x256"], "metrics": ["detail"], "draws": 20})
    empty = torch.empty(0, 0)
    half, whole = (Sample(6, empty, empty, detail=readings("drawn") * factor) for factor in (0.5, 1.0))
    found = {score.metric: score for score in scores(spec, half, whole)}
    assert tuple(found) == WORDS
    assert [found[word].value for word in WORDS[: len(OCTAVES)]] == pytest.approx([0.5] * 3)
    assert found["sharpness"].value == pytest.approx(0.5 * float(readings("drawn")[:, 3].mean()))
    assert {score.n_reference for score in found.values()} == {6}
