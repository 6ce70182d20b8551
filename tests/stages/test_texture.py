"""Textures of true scenes are read with their period, also blurred, enlarged and noisy ones; seams are found."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.metrics_validation import makers
from stages.metrics.score import Sample, scores
from stages.metrics.seams import seam_score
from stages.metrics.spec import make_evaluation
from stages.metrics.texture import WORDS, judge_texture, texture_words
from stages.shapes.scenes import PERIODS, SHAPES, TEXTURES, draw, draw_objects, sample_scene
from stages.shapes.texture import asked_texture, read_texture

SIDE, BASE = 256, 128
SCENES = tuple(sample_scene(3_400_000 + index) for index in range(6))
MAKERS = dict(makers()) | {"drawn": lambda scene, side: draw(scene, side, side)}


@cache
def judged(fault: str) -> Tensor:
    rows = [judge_texture(MAKERS[fault](scene, SIDE), scene.caption, BASE * BASE) for scene in SCENES]
    return torch.tensor(rows, dtype=torch.float64)


@cache
def seams(fault: str) -> Tensor:
    drawn = (MAKERS[fault](scene, SIDE) for scene in SCENES)
    levels = (((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8) for image in drawn)
    return torch.tensor([seam_score(image, (BASE // 2, BASE // 2)) for image in levels])


@pytest.mark.parametrize("fault", ["drawn", "enlarged", "blurred", "noisy"])
def test_a_texture_and_its_period_are_read(fault: str) -> None:
    pattern, right, ratio = judged(fault).T
    assert right.all()
    assert 0 < pattern.sum() < len(SCENES)
    assert ratio[pattern == 1].sub(1).abs().max() < 0.12
    assert (ratio[pattern == 0] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_every_shape_with_every_texture(shape: str, texture: str) -> None:
    scene = replace(SCENES[0], shape=shape, texture=texture, radius=0.35, center=(0.0, 0.05), background="snow")
    found = read_texture(draw(scene, 192, 320))
    assert found is not None
    assert found.texture == texture
    assert found.period == pytest.approx(PERIODS.get(texture, 0), rel=0.12)


def test_texture_of_the_training_size_has_the_right_word_and_the_wrong_period() -> None:
    pattern, right, ratio = judged("texture too small").T
    assert right.all(), "so the word alone does not see it"
    assert ratio[pattern == 1] == pytest.approx(0.5, abs=0.06)


def test_another_texture_and_none_at_all() -> None:
    scene = replace(SCENES[0], texture="striped")
    dotted = draw(replace(scene, texture="dotted"), SIDE, SIDE)
    assert judge_texture(dotted, scene.caption, BASE * BASE)[:2] == (1.0, 0.0)
    assert judge_texture(dotted, scene.caption, BASE * BASE)[2] == pytest.approx(1.1, abs=0.1)
    ground = draw_objects(scene, (), SIDE, SIDE)
    assert read_texture(ground) is None
    assert judge_texture(ground, scene.caption, BASE * BASE) == (1.0, 0.0, 0.0)
    assert [asked_texture(f"a {word}red disc on sand") for word in ("", "striped ", "dotted ")] == list(TEXTURES)
    with pytest.raises(ValueError, match="is not"):
        asked_texture("a lighthouse at dusk")


def test_words_are_of_their_own_pictures() -> None:
    rows = torch.tensor([[0, 1, 0], [1, 1, 1.2], [1, 0, 0.4], [1, 0, 0]], dtype=torch.float64)
    found = texture_words(rows)
    assert found["texture"].tolist() == [1, 1, 0, 0]
    assert found["period"].tolist() == [1.2, 0.4]
    assert found["period_right"].tolist() == [1, 0, 0]


def test_a_word_of_fewer_than_two_pictures_has_no_value() -> None:
    spec = make_evaluation({"methods": ["direct"], "metrics": ["texture"], "draws": 10})
    empty: Any = torch.empty(0, 0)
    rows = torch.tensor([[0, 1, 0], [1, 0, 0.4]], dtype=torch.float64)
    found = {score.metric: score for score in scores(spec, Sample(2, empty, empty, texture=rows), None)}
    assert tuple(found) == WORDS
    assert (found["texture"].value, found["texture"].n) == (0.5, 2)
    assert (found["period"].value, found["period"].low, found["period"].n) == (None, None, 1)


def test_seams_of_a_hundredth_are_found_and_nothing_else_passes_for_one() -> None:
    usual = max(float(seams(fault).max()) for fault in ("drawn", "blurred", "noisy", "texture too small"))
    assert usual < 0.5
    assert seams("seams").min() > 2 * usual


def test_seams_of_a_plain_picture_and_one_without_windows() -> None:
    assert seam_score(torch.full((3, 64, 64), 9, dtype=torch.uint8), (16, 16)) == 0
    noise = torch.randint(0, 255, (3, 48, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert seam_score(noise, (64, 96)) == 0
    step = noise.clone() // 8
    step[:, :, 40:] += 100
    assert seam_score(step, (64, 40)) > 1
    assert seam_score(step.transpose(1, 2), (40, 64)) == pytest.approx(seam_score(step, (64, 40)))
