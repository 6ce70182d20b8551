"""`freescale study`: a blind page that a voter can fill in a real browser, and the count of what was saved."""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.stats import norm

from flows.compare.study import QUESTIONS, make_study
from flows.compare.study_tally import Ballot, Key, print_tally, read_study, tally
from stages.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ("FreeScale", "DemoFusion", "direct")
COLORS = {"FreeScale": (200, 0, 0), "DemoFusion": (0, 200, 0), "direct": (0, 0, 200)}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Like the folder that `compare` writes, with a colour for each method."""
    folder = tmp_path / "compared"
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(4):
        cells = []
        for method in METHODS:
            run = f"{method.lower()}-{number}"
            note = PngInfo()
            note.add_text("spec", method)
            Image.new("RGB", (64, 48), COLORS[method]).save(folder / "pictures" / f"{run}.png", pnginfo=note)
            cells.append({"method": method, "run": run, "picture": {"file": f"pictures/{run}.png"}})
        rows.append({"prompt": f"a thing, number {number}", "seed": 0, "size": "64x48", "cells": cells})
    record = {"comparison": "comparison-1", "methods": METHODS, "rows": rows}
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def study(comparison: Path, tmp_path: Path) -> Path:
    make_study(comparison, tmp_path / "study", seed=3)
    return tmp_path / "study"


def key_of(study: Path) -> Key:
    return Key.model_validate_json((study / "key.json").read_bytes())


def ballot(study: Path, path: Path, voter: int, choose: Any) -> Path:
    """A ballot as the page saves it; `choose(question, methods)` gives the method's name."""
    key = key_of(study)
    answers = {
        item: [methods.index(choose(question, methods)) for question in key.questions]
        for item, methods in sorted(key.items.items())
    }
    said = [key.study, f"{voter:032x}", *([item, given] for item, given in answers.items())]
    checksum = f"{zlib.crc32(json.dumps(said, separators=(',', ':')).encode()):08x}"
    path.write_text(json.dumps({"study": said[0], "voter": said[1], "answers": answers, "checksum": checksum}))
    return path


def test_the_page_is_blind_whole_and_the_same_for_a_seed(study: Path, comparison: Path, tmp_path: Path) -> None:
    page = (study / "study.html").read_text()
    for name in (*METHODS, *(m.lower() for m in METHODS)):
        assert name not in re.sub(r"flex-direction", "", page), name
    assert not re.search(r"(src|href)=.?(http|//|pictures)", page)
    assert make_study(comparison, study, seed=3)[0].read_text() == page
    make_study(comparison, tmp_path / "other", seed=4)
    assert key_of(tmp_path / "other").items.values() != key_of(study).items.values()


def test_the_order_of_methods_differs_from_row_to_row(comparison: Path, tmp_path: Path) -> None:
    orders = set()
    for seed in range(8):
        make_study(comparison, tmp_path / str(seed), seed)
        orders |= set(key_of(tmp_path / str(seed)).items.values())
    assert len(orders) == 6  # all there are of three


def test_an_unfinished_comparison_is_refused(comparison: Path, tmp_path: Path) -> None:
    record = json.loads((comparison / "comparison.json").read_text())
    del record["rows"][1]["cells"][0]["picture"]
    (comparison / "comparison.json").write_text(json.dumps(record))
    with pytest.raises(SpecError, match="1 of 4 rows lack a picture"):
        make_study(comparison, tmp_path / "study", 0)
    assert not (tmp_path / "study").exists()


def test_another_study_is_not_written_over(study: Path, comparison: Path) -> None:
    before = (study / "key.json").read_bytes()
    with pytest.raises(SpecError, match="is of another study"):
        make_study(comparison, study, seed=9)
    assert (study / "key.json").read_bytes() == before


def test_a_voter_fills_the_page_and_the_ballot_counts(study: Path, tmp_path: Path, browser: Any) -> None:
    """Always the reddest picture for text, the greenest for quality, the bluest for structure."""
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(study / "study.html")
    browser.run(
        """(() => {
          window.colors = () => [...document.querySelectorAll('#pictures img')].map((image) => {
            const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
            pen.drawImage(image, 0, 0);
            return [...pen.getImageData(1, 1, 1, 1).data].slice(0, 3);
          });
        })()"""
    )
    for number in range(4):
        browser.until(
            "[...document.querySelectorAll('#pictures img')].every((i) => i.complete && i.naturalWidth === 64)"
        )
        assert browser.run("document.querySelector('#save').disabled")
        colors = browser.run("colors()")
        for channel, question in enumerate(QUESTIONS):
            pick = max(range(3), key=lambda i, c=channel: colors[i][c])
            browser.run(f"document.querySelectorAll('input[name={question}]')[{pick}].click()")
        if number < 3:
            browser.run("document.querySelector('#next').click()")
    browser.run("document.querySelector('#save').click()")
    patience = 200
    while not (found := list(tmp_path.glob("ballot-*.json"))) and patience:
        browser.drawn()
        patience -= 1
    shares = {(s.question, s.method): s.value for s in tally(*read_study(study / "key.json", found))}
    assert shares["text", "FreeScale"] == shares["quality", "DemoFusion"] == shares["structure", "direct"] == 1.0
    assert sum(shares.values()) == 3.0


@pytest.mark.thorough
def test_shares_and_intervals(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        ballot(study, tmp_path / f"{i}.json", i, lambda q, m, i=i: "FreeScale" if i % 4 else "direct") for i in range(8)
    ]
    shares = {(s.question, s.method): s for s in tally(*read_study(study / "key.json", paths))}
    ours = shares["text", "FreeScale"]
    assert ours.value == 0.75
    assert shares["text", "DemoFusion"].value == shares["text", "DemoFusion"].high == 0.0
    half = norm.ppf(0.975) * (0.75 * 0.25 / 8) ** 0.5  # each voter always says the same: eight draws, not 32
    assert ours.high - ours.low == pytest.approx(2 * half, rel=0.25)
    print_tally(study / "key.json", paths, as_json=False)
    assert "| FreeScale | 75.0 % [" in capsys.readouterr().out
    print_tally(study / "key.json", paths, as_json=True)
    assert json.loads(capsys.readouterr().out)["ballots"] == 8


def test_damaged_foreign_and_double_ballots_are_refused_by_name(study: Path, tmp_path: Path) -> None:
    good = ballot(study, tmp_path / "good.json", 1, lambda q, m: m[0])
    record = json.loads(good.read_text())
    item = next(iter(record["answers"]))
    bad = {
        "changed": record | {"answers": record["answers"] | {item: [2, 2, 2]}},
        "foreign": record | {"study": "another"},
        "short": record | {"answers": {item: [0, 0, 0]}},
        "other": {"votes": 3},
        "double": record,
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "torn.json").write_text(good.read_text()[:40])
    paths = [good, *(tmp_path / f"{name}.json" for name in (*bad, "torn", "absent"))]
    with pytest.raises(SpecError) as refused:
        read_study(study / "key.json", paths)
    for name in (*bad, "torn", "absent"):
        assert f"{name}.json" in str(refused.value), name
    assert "double.json is of the same voter as" in str(refused.value)
    assert str(refused.value).count("good.json") == 1
    _, found = read_study(study / "key.json", [good])
    assert found == [Ballot.model_validate_json(good.read_bytes())]


def test_a_ballot_whose_numbers_point_nowhere_is_refused(study: Path, tmp_path: Path) -> None:
    path = ballot(study, tmp_path / "far.json", 1, lambda q, m: m[0])
    record = json.loads(path.read_text())
    for given in record["answers"].values():
        given[0] = 3
    said = [record["study"], record["voter"], *record["answers"].items()]
    record["checksum"] = f"{zlib.crc32(json.dumps(said, separators=(',', ':')).encode()):08x}"
    path.write_text(json.dumps(record))
    with pytest.raises(SpecError, match=r"row \w+ has \[3, 0, 0\]"):
        read_study(study / "key.json", [path])


@pytest.mark.thorough
def test_the_interval_of_one_voter_comes_from_the_rows(study: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # the global generator decides nothing
    turn = iter(range(99))
    path = ballot(study, tmp_path / "one.json", 1, lambda q, m: METHODS[next(turn) // 3 % 2])
    first = tally(*read_study(study / "key.json", [path]))
    torch.manual_seed(1)
    assert first == tally(*read_study(study / "key.json", [path]))
    assert 0 < first[0].low + 1e-9 < first[0].value + 1e-9 < first[0].high + 1e-9
