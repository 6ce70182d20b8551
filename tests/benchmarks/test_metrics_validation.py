"""Faults are told from the truth where a metric sees them; the file of the package says it for every metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from torch import Tensor

from benchmarks.metrics_validation import (
    FAULTS,
    SETS,
    drawn_values,
    of_pictures,
    record,
    separate,
    separate_sets,
    table,
)
from stages.metrics.detail import WORDS as DETAIL_WORDS
from stages.metrics.score import WORDS as OBJECT_WORDS
from stages.metrics.score import Sample
from stages.metrics.spec import OF_PICTURES, make_evaluation
from stages.metrics.texture import WORDS as TEXTURE_WORDS
from stages.metrics.validated import MARKS, Shown, Verdict, shown, validation
from tests.toys import ON_UNETS

COUNT = 24
TABLES = Path(__file__).parents[2] / "benchmarks" / "shapes"


def sample(seed: int, *, objects: int = 1, shift: float = 0.0, seams: float = 0.0, ratio: float = 1.0) -> Sample:
    """Readings of pictures without pictures: a fault moves the numbers that it should."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return Sample(
        COUNT,
        features=noise(COUNT, 8) + shift,
        logits=noise(COUNT, 5),
        crops=noise(2 * COUNT, 8),
        owner=torch.arange(COUNT).repeat_interleave(2),
        verdicts=torch.tensor([[objects, 1, 1, 1]]).repeat(COUNT, 1),
        detail=noise(COUNT, 5).exp(),
        texture=torch.tensor([1.0, 1.0, ratio], dtype=torch.float64) + 0.02 * noise(COUNT, 1) * torch.tensor([0, 0, 1]),
        seams=0.1 * noise(COUNT).abs() + seams,
    )


def test_a_mean_over_pictures_is_told_by_its_interval_and_its_auc() -> None:
    good, reference, bad = sample(0), sample(1), sample(0, objects=3, seams=0.5, ratio=0.5)
    found = {metric: separate(metric, bad, good, reference, 50) for metric in of_pictures(good, reference)}
    told = {metric for metric, separation in found.items() if separation.verdict == "worse"}
    assert told == {"objects", "one_object", "right", "seams", "period", "period_right"}
    assert found["seams"].auc == 1
    assert found["attributes"].auc == found["detail_4"].auc == 0.5
    assert (found["objects"].truth, found["objects"].value) == (1, 3)
    assert separate("seams", good, bad, reference, 50).verdict == "better"
    slightly = separate("seams", sample(0, seams=0.01), good, reference, 50)
    assert slightly.low > 0, "of pairs it is certain"
    assert slightly.verdict == "no difference", "and too little to speak of"


def test_a_distance_of_sets_is_told_where_it_leaves_the_truths_interval() -> None:
    reference = sample(1)
    truth = {metric: drawn_values(metric, sample(0), reference, 40) for metric in SETS}
    far = {metric: separate_sets(metric, sample(0, shift=3.0), reference, truth[metric]) for metric in SETS}
    assert {metric for metric, separation in far.items() if separation.verdict == "worse"} == {"fid", "kid"}
    again = {metric: separate_sets(metric, sample(2), reference, truth[metric]).verdict for metric in SETS}
    assert set(again.values()) == {"no difference"}


def test_the_record_holds_all_and_the_table_shows_it() -> None:
    found = {
        metric: dict.fromkeys(FAULTS, separate(metric, sample(0), sample(0), sample(1), 10)) for metric in ("seams",)
    }
    content = json.loads(json.dumps(record({256: found}, COUNT)))
    assert content["metrics"]["seams"]["256x256"]["tiled"]["verdict"] == "no difference"
    assert table(content, "256x256").splitlines()[2].startswith("| seams | 0.50 |")


def test_the_file_says_of_every_metric_what_it_sees() -> None:
    words = {"objects": OBJECT_WORDS, "detail": DETAIL_WORDS, "texture": TEXTURE_WORDS}
    columns = [word for metric in OF_PICTURES for word in words.get(metric, (metric,)) if metric != "clip_score"]
    assert sorted(validation()["metrics"]) == sorted(columns)
    for column in columns:
        seen = shown(column)
        assert seen is not None
        assert seen.mark in MARKS.values()
        assert {*seen.worse, *seen.better} <= FAULTS.keys() == validation()["faults"].keys()
    assert shown("clip_score") is None
    verdicts = [f["verdict"] for by in validation()["metrics"].values() for size in by.values() for f in size.values()]
    assert set(verdicts) <= set(get_args(Verdict))


@pytest.mark.parametrize(
    ("metric", "sees", "does_not_see"),
    [
        ("right", "objects repeated", "enlarged"),
        ("fid", "tiled", "blurred"),
        ("detail_2", "enlarged", "other words"),
        ("seams", "seams", "blurred"),
        ("period_right", "texture too small", "noisy"),
        ("repetition", "tiled", "texture too small"),
    ],
)
def test_what_the_metrics_are_for(metric: str, sees: str, does_not_see: str) -> None:
    found = shown(metric)
    assert found is not None
    assert sees in found.worse
    assert does_not_see not in found.worse


def test_marks() -> None:
    assert [Shown(*seen).mark for seen in ((("a",), ()), (("a",), ("b",)), ((), ()), ((), ("b",)))] == list("✓±✗✗")


def test_every_method_is_in_a_table_that_can_be_read() -> None:
    specs = {path.name: make_evaluation(yaml.safe_load(path.read_text())) for path in sorted(TABLES.glob("*.yaml"))}
    tables = ("fast.yaml", "more_fast.yaml", "published_steps.yaml", "fast_eight.yaml")
    assert {entry.method.name for name in tables for entry in specs[name].methods} == ON_UNETS.keys()
    assert len({specs[name].metrics for name in tables}) == 1
    assert all("enlarge" in [e.method.name for e in specs[name].methods] for name in ("fast.yaml", "fast_eight.yaml"))
