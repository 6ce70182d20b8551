"""The picture of cost against quality: what it draws, what it refuses, and costs on SDXL."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from benchmarks.pareto import Point, Sdxl, front, main, picture, points, table

if TYPE_CHECKING:
    from pathlib import Path

METHODS = {
    "FreeScale": ("freescale", 72, 0.77, 0.4),
    "draft & co": ("draft", 37, 0.81, 0.5),
    "enlarge": ("enlarge", 60, 0.94, 0.03),
}


def made(sizes: tuple[str, ...] = ("256x256", "512x512")) -> dict[str, Any]:
    rows = [
        {"method": label, "size": size, "metric": metric, "value": value, "low": value - 0.02, "high": value + 0.02}
        | {"unet_samples": samples, "seconds": None}
        for size in sizes
        for label, (_, samples, right, detail) in METHODS.items()
        for metric, value in (("right", right), ("detail_4", detail))
    ]
    methods = [{"label": label, "steps": None, "method": {"name": name}} for label, (name, *_) in METHODS.items()]
    return {"rows": rows, "spec": {"steps": 8, "model": {"name": "shapes"}, "methods": methods}}


def test_a_panel_for_each_size_and_metric_a_point_for_each_method() -> None:
    found = points([made()], ["right", "detail_4"], "samples")
    assert len(found) == 12
    root = ElementTree.fromstring(picture(found, "samples"))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 12
    assert len(root.findall(f"{space}polyline")) == 4
    texts = [text.text for text in root.findall(f"{space}text")]
    assert texts.count("draft & co") == 4
    assert "512x512: right, %" in texts
    assert "| draft & co | 512x512 | 37 | 81 [79, 83] | 0.5 [0.48, 0.52] |" in table(found, "samples")


def test_a_later_file_counts_and_values_that_are_missing_are_left_out() -> None:
    older, newer = made(), made(("512x512",))
    newer["rows"][0]["value"] = 0.5
    older["rows"][0]["value"] = None
    found = {(p.method, p.size, p.metric): p.value for p in points([older, newer], ["right"], "samples")}
    assert found["FreeScale", "512x512", "right"] == 50
    assert ("FreeScale", "256x256", "right") not in found


def test_the_front_is_what_no_other_beats() -> None:
    def named(metric: str, *values: tuple[str, float, float]) -> list[str]:
        return [p.method for p in front(Point(n, "", metric, cost, value, value, value) for n, cost, value in values)]

    assert named("right", ("a", 3, 9), ("b", 1, 5), ("c", 2, 4), ("d", 4, 9)) == ["b", "a"]
    assert named("detail_4", ("false", 1, 3.0), ("right", 2, 0.9), ("plain", 3, 0.1)) == ["false", "right"]


def test_a_metric_or_a_cost_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="'fid' is in none of the evaluations, which have detail_4, right"):
        points([made()], ["fid"], "samples")
    with pytest.raises(ValueError, match="FreeScale at 256x256 has no seconds"):
        points([made()], ["right"], "seconds")


def test_the_command_writes_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(made()))
    words = [str(tmp_path / "evaluation.json"), "--cost", "samples", "--out", str(tmp_path / "pareto.svg")]
    monkeypatch.setattr(sys, "argv", ["pareto", *words])
    main()
    assert (tmp_path / "pareto.svg").read_text().startswith("<svg")
    assert capsys.readouterr().out.count("\n") == 8
    monkeypatch.setattr(sys, "argv", ["pareto", *words, "--metrics", "detail_4", "--over", "detail_4=0.5"])
    main()
    assert (
        points([made()], ["detail_4"], "samples", {"detail_4": 0.5})[0].value
        == 2 * points([made()], ["detail_4"], "samples")[0].value
    )
    monkeypatch.setattr(sys, "argv", ["pareto", *words, "--metrics", "fid"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2


@pytest.mark.thorough
def test_costs_on_sdxl_are_those_of_the_walk() -> None:
    spec, sdxl = made()["spec"], Sdxl()
    plain, draft, more = (
        sdxl.tflop(spec, *which)
        for which in (("enlarge", "512x512"), ("draft & co", "512x512"), ("FreeScale", "512x512"))
    )
    assert plain < draft < more, "draft decodes at the target size, and FreeScale runs 7 steps there"
    assert sdxl.tflop(spec, "enlarge", "256x256") == plain, "the base picture alone"
    assert sdxl.tflop(spec | {"steps": 16}, "enlarge", "256x256") == pytest.approx(2 * plain, rel=0.1)
