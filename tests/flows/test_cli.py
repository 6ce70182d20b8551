"""The command line, in this process: what it prints, and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from flows import cli

if TYPE_CHECKING:
    from pathlib import Path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["freescale", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_size_off_the_grid_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "render", "a red disc", "--size", "1001x512") == 2
    said = capsys.readouterr().err.strip()
    assert "1000 and 1008" in said
    assert len(said.splitlines()) == 1
    assert not home.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("render", "x", "--method", "magic"),
        ("render", "x", "--no-such-flag", "1"),
        ("render", "missing.yaml"),
        ("render", "x", "two words"),
        ("render", "x", "--mask", "face.png"),
        ("resume", "no-such-run"),
        ("show", "../../etc/passwd"),
        ("plan", "x", "--device", "tpu"),
    ],
)
def test_bad_words_exit_with_2(home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    assert call(monkeypatch, *words) == 2


def test_plan_starts_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "plan", "a red disc on a meadow", "--size", "768x512", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["levels"][-1] == "768x512"
    assert {row["state"] for row in plan["stages"]} == {"to do"}
    assert not (home / "store").exists()


def test_models_and_runs(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "shapes"
    assert call(monkeypatch, "runs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
