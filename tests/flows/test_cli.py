"""The command line, in this process: what it prints, and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.cli import app as cli

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
        ("render", "x", "--vae-memory", "much"),
        ("render", "x", "--vae-tile", "100"),
    ],
)
def test_bad_words_exit_with_2(home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    assert call(monkeypatch, *words) == 2


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--vae-memory", "much", "vae_memory: 'much' is not a number of bytes"),
        ("--vae-memory", "0", "vae_memory: '0' is not a number of bytes"),
        ("--vae-tile", "100", "vae_tile: 100 is not one of 64, 128, 256, 512, 1024"),
    ],
)
def test_what_the_vae_cannot_have_is_one_sentence(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    says: str,
) -> None:
    assert call(monkeypatch, "render", "a red disc", option, value) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1


def test_vae_options_reach_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("flows.cli.run_render.run", lambda job, place, options, *_: given.append(options))
    for words in ((), ("--vae-memory", "6GiB", "--vae-tile", "256"), ("--vae-memory", "never")):
        call(monkeypatch, "render", "a red disc", "--size", "768x512", *words)
    assert [(options.vae_memory, options.vae_tile) for options in given] == [(None, 512), (6 << 30, 256), (0, 512)]


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


def test_one_render_through_every_command(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "a green ring on sand",
        "--size",
        "192x128",
        "--steps",
        "6",
        "--restart",
        "0.3",
        "--dilation",
        "0,0.7",
        "--out",
        str(tmp_path),
    )

    def said(*command: str) -> dict[str, Any]:
        assert call(monkeypatch, *command, "--json") == 0
        out: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return out

    made = said("render", *words)
    run = made["run"]
    assert made["outputs"][0].startswith(str(tmp_path))
    again = said("resume", run, "--out", str(tmp_path))
    assert again["pixels_sha256"] == made["pixels_sha256"]
    assert all(stage["reused"] for stage in again["stages"])

    shown = said("show", run)
    assert run in json.dumps(shown)
    assert [row["run"] for row in json.loads(json.dumps(said("runs")))] == [run]  # type: ignore[index]

    planned = said("redo", run, "--from", "detail_pass", "--detail-scale", "0.5", "--plan")
    states = {(row["stage"], row["level"]): row["state"] for row in planned["stages"]}
    assert states["highres_denoise", 1] == "reused"
    assert states["detail_pass", 1] == "to do"

    tiff = tmp_path / "picture.tiff"
    assert call(monkeypatch, "export", run, "--format", "tiff", "--level", "0", "--out", str(tiff)) == 0
    with Image.open(tiff) as picture:
        assert picture.size == (160, 104)
    tiff.write_bytes(b"somebody's work")
    assert call(monkeypatch, "export", run, "--format", "tiff", "--out", str(tiff)) == 2
    assert tiff.read_bytes() == b"somebody's work"
    assert call(monkeypatch, "export", run, "--level", "9") == 2


def test_doctor_finds_a_damaged_artifact(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("a red disc", "--size", "64x64", "--steps", "2", "--out", str(tmp_path))
    assert call(monkeypatch, "render", *words) == 0
    call(monkeypatch, "doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out.splitlines()[-1])}
    assert {"python", "torch", "prefect", "home", "store", "models"} <= findings.keys()
    assert findings["store"]["ok"]
    chunk = next(path for path in sorted((home / "store" / "data").rglob("c/**/*")) if path.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    assert call(monkeypatch, "doctor") == 1
    assert "1 of" in capsys.readouterr().out


def test_a_plan_says_what_every_stage_takes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "a red disc", "--size", "192x128", "--steps", "4", "--json")
    assert call(monkeypatch, *words) == 0
    plan = json.loads(capsys.readouterr().out)
    rows = {(row["stage"], row["level"]): row for row in plan["stages"]}
    assert plan["memory_bytes"] == max(row["memory_bytes"] for row in plan["stages"])
    assert plan["fits"]
    assert rows["base_denoise", 0]["flops"] > 0 < rows["base_denoise", 0]["seconds"]
    assert rows["base_denoise", 0]["seconds_basis"] in ("measured", "assumed")
    assert all(row["disk_bytes"] > 0 and row["savings"] == [] for row in plan["stages"])
    budget = max(rows[key]["memory_bytes"] for key in rows if key[0] in ("decode", "upscale", "conditioning"))
    assert call(monkeypatch, *words, "--memory", str(budget)) == 0
    assert json.loads(capsys.readouterr().out)["memory_budget_bytes"] == budget


def test_a_budget_that_nothing_fits_is_refused_by_plan_and_render(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "render"):
        words = (command, "a red disc", "--size", "192x128", "--steps", "4", "--memory", "1MiB", "--seed", "77")
        assert call(monkeypatch, *words) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("freescale: memory: 1 MiB is too little for ")
        assert "the smallest that would do is " in said
    assert call(monkeypatch, "plan", "x", "--memory", "lots") == 2
    assert "not a number of bytes" in capsys.readouterr().err
