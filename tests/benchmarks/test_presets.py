"""The sweep of `swift`'s values renders, measures and shows crops, and goes on where it was stopped."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from benchmarks.presets import CHANGES, asked, main, methods, places
from flows.home import Home
from stages.metrics.spec import make_evaluation
from stages.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

SMALL = "--model shapes --device cpu --threads 1 --size 192x128 --steps 2 --starts 200 --counts 1 --leaves 0.5"


@pytest.mark.thorough
def test_a_sweep_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really rendered; a second time nothing is left, and the numbers are those of the first."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red disc on a meadow\na dotted blue ring on sand\n")
    words = [*SMALL.split(), "--changes", "no LFM", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert main([*words, "--plan"]) == 0
    assert "6 settings: 14 pictures, 14 to render, about 0 min" in capsys.readouterr().out
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "14 pictures, 0 to render" in told
    assert told.splitlines()[-1] == first
    rows = json.loads(first)["rows"]
    labels = ["FreeScale", "enlarge", "preset swift", "preset draft", "t 200, 1 steps, leave 0.5", "no LFM"]
    assert [row["setting"] for row in rows] == labels
    assert rows[0]["calls"] > rows[4]["calls"] > 1.0
    assert rows[1]["calls"] == 2.0
    assert rows[1]["detail_4"] < min(row["detail_4"] for row in rows if row["setting"] != "enlarge")
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)
    with (tmp_path / "out" / "presets.csv").open() as file:
        assert [row["setting"] for row in csv.DictReader(file)] == labels
    for id in ("0-0", "1-0"):
        with Image.open(tmp_path / "out" / f"crops-{id}.png") as sheet:
            assert sheet.size == (4 * 268, 2 * 150)


def test_the_sweep_for_sdxl_is_what_it_says(tmp_path: Path) -> None:
    """36 settings of start, steps and leave, then one change at a time from the middle, all of them valid."""
    given = asked(["--model", "shapes", "--out", str(tmp_path)])
    found = methods(given, ModelSpec(), Home(tmp_path))
    swept = [entry["method"] for entry in found[4:40]]
    assert {(m["start_timestep"], m["steps"], m["leave"]) for m in swept} == {
        (t, k, leave) for t in (249.0, 381.0, 600.0) for k in (2, 4, 8, 12) for leave in (0.6, 0.8, 1.0)
    }
    assert [entry["label"] for entry in found[40:]] == list(CHANGES)
    assert {"start_timestep": 381.0, "steps": 4, "leave": 0.8}.items() <= found[40]["method"].items()
    assert len(make_evaluation({"methods": found, "metrics": ["detail"]}).methods) == 40 + len(CHANGES)


def test_a_wrong_model_and_a_wrong_change_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "none-such", "--out", str(tmp_path)]) == 2
    assert "none-such" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        asked(["--model", "shapes", "--out", str(tmp_path), "--changes", "no lfm"])
    assert "'no lfm' is not one of no LFM" in capsys.readouterr().err


def test_the_busiest_and_the_quietest_place_are_shown() -> None:
    pixels = np.full((512, 600, 3), 128, np.uint8)
    pixels[256:512, 0:256] = np.random.default_rng(0).integers(0, 255, (256, 256, 3))
    busy, quiet = places(Image.fromarray(pixels))
    assert busy == (0, 256)
    assert quiet in ((256, 0), (344, 0), (344, 256))
