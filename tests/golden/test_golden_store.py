"""A home that the code before wrote: today's code reads all of it, finds every artifact, and makes nothing anew.

No pixel is computed here: floating point differs from machine to machine, and what was stored has to be found.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.golden import doors, make
from tests.golden.moved import ADVICE, differences, refusing

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX: dict[str, Any] = json.loads(make.INDEX.read_text(encoding="utf-8"))
RUNS: dict[str, str] = INDEX["runs"]  # by the name of the job
DONE: dict[str, str] = INDEX["pixels_sha256"]  # by run
MACHINE = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the golden home for all tests: none of them may change what the others look at."""
    return Path(shutil.copytree(make.HOME, tmp_path_factory.mktemp("golden") / "home"))


@pytest.fixture
def home(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The copy, in which no artifact is made; masks are named from the folder of this file."""
    monkeypatch.chdir(doors.GOLDEN)
    monkeypatch.delenv("FREESCALE_STORE", raising=False)
    before = artifacts(copied)
    yield copied
    assert artifacts(copied) == before, "an artifact was made anew, or its manifest was touched"


def artifacts(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.glob("store/manifests/*/*.json")}


def told(*words: str | Path, code: int = 0) -> Any:
    """What a command says with `--json`."""
    answer = doors.freescale(*words, "--json")
    if answer.code != code:
        pytest.fail(f"freescale {words[0]} ended with {answer.code}, not {code}: {answer.said}", pytrace=False)
    return answer.json


def all_reused(result: dict[str, Any]) -> None:
    made = [f"{stage['name']} {stage['level']}" for stage in result["stages"] if not stage["reused"]]
    assert not made, f"made anew: {', '.join(made)}"
    assert result["pixels_sha256"] == DONE[result["run"]]


def test_no_byte_is_missing(home: Path) -> None:
    store = doors.Home(home).store
    assert len(store.list_keys()) == INDEX["artifacts"] == len(artifacts(home))
    assert {key: what for key in store.list_keys() if (what := store.verify(key)) is not None} == {}
    assert all(store.find(key) is not None for key in store.list_keys())


@pytest.mark.parametrize("run", sorted(p.parent.name for p in make.HOME.glob("store/runs/*/run.json")))
def test_a_recorded_run_is_planned_under_its_keys(run: str, home: Path) -> None:
    with refusing(f"run {run}: its record cannot be read any more"):
        name, now, then = doors.record_calls(run, home, doors.GOLDEN)
    if lines := differences(then, now):
        pytest.fail("\n".join([f"run {run} is planned under other keys:", *lines, ADVICE]), pytrace=False)
    assert name == run
    missing = [label for label, call in now.items() if doors.Home(home).store.find(call["key"]) is None]
    assert run in DONE or missing, "a run that is not done lacks something"
    assert run not in DONE or not missing, f"not in the store: {', '.join(missing)}"


@pytest.mark.parametrize("run", DONE)
def test_a_done_run_is_resumed_without_work(run: str, home: Path, tmp_path: Path) -> None:
    result = told("resume", run, *MACHINE, "--home", home, "--out", tmp_path)
    all_reused(result)
    assert result["run"] == run
    for path in result["outputs"][1:]:
        name = path.removeprefix(f"{home}/")
        assert (home / name).read_bytes() == (make.HOME / name).read_bytes()


@pytest.mark.parametrize("name", ["small", "wide", "video"])
def test_the_same_spec_is_the_same_run(name: str, home: Path, tmp_path: Path) -> None:
    jobs = yaml.safe_load((doors.GOLDEN / "jobs.yaml").read_text(encoding="utf-8"))["jobs"]
    spec = next(job for job in jobs if job["name"] == name)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({field: value for field, value in spec.items() if field != "name"}), encoding="utf-8")
    shutil.copy(doors.GOLDEN / "mask.png", tmp_path)
    result = told("render", path, *MACHINE, "--home", home, "--out", tmp_path)
    all_reused(result)
    assert result["run"] == RUNS[name]


def test_a_redo_finds_what_it_was_made_from_and_itself(home: Path, tmp_path: Path) -> None:
    words = ("redo", RUNS["small"], "--from", "detail_pass", "--detail-scale", "1.0", *MACHINE)
    result = told(*words, "--home", home, "--out", tmp_path)
    all_reused(result)
    assert result["run"] == RUNS["redone"]


def test_runs_are_listed_and_shown(home: Path) -> None:
    listed = {one["run"]: one for one in told("runs", "--home", home)}
    assert listed.keys() == {path.parent.name for path in make.HOME.glob("store/runs/*/run.json")}
    assert {run for run, one in listed.items() if one["state"] == "done"} == set(DONE)
    assert listed[RUNS["broken"]]["state"] == "failed"
    assert listed[RUNS["redone"]]["origin"] == RUNS["small"]
    for run in listed:
        shown = told("show", run, "--home", home)
        assert shown["run"] == run
        assert all(stage["done"] for stage in shown["stages"]) == (run in DONE)
        assert doors.freescale("show", run, "--home", home).code == 0


def test_a_night_given_again_finds_its_jobs_done_and_set_aside(home: Path) -> None:
    night = told("batch", doors.GOLDEN / "jobs.yaml", *MACHINE, "--home", home, code=1)
    states = {job["name"]: (job["run"], job["state"]) for job in night["jobs"]}
    assert states == {name: (RUNS[name], "done") for name in ("small", "wide", "video")} | {
        "broken": (RUNS["broken"], "set aside")
    }
    record = json.loads((make.HOME / "set-aside" / f"{RUNS['broken']}.json").read_text(encoding="utf-8"))
    assert next(job for job in night["jobs"] if job["name"] == "broken")["error"] == record["error"]


def test_a_job_that_was_set_aside_goes_on_from_its_checkpoint(home: Path) -> None:
    record = json.loads((home / "set-aside" / f"{RUNS['broken']}.json").read_text(encoding="utf-8"))
    store, (_, calls, _) = doors.Home(home).store, doors.record_calls(RUNS["broken"], home, doors.GOLDEN)
    assert store.find(calls["conditioning 0"]["key"]) is not None
    label = f"{record['checkpoint']['stage']} {record['checkpoint']['level']}"
    assert store.find(calls[label]["key"]) is None
    checkpoints = doors.Checkpoints(store, calls[label]["key"])
    assert max(checkpoints.steps()) == record["checkpoint"]["step"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == record["checkpoint"]["step"]
    assert newest.tensors["latents"].shape == (1, 4, 16, 16)
    run, _ = doors.plan_calls(record["spec"], home, doors.GOLDEN)
    assert run == record["run"]


def test_the_comparison_renders_nothing_and_can_be_a_study(home: Path, tmp_path: Path) -> None:
    folder = home / "comparisons" / INDEX["comparison"]
    assert doors.freescale("study", "make", folder, "--out", tmp_path / "before").code == 0
    told_again = told("compare", doors.GOLDEN / "comparison.yaml", *MACHINE, "--home", home)
    assert told_again["comparison"] == INDEX["comparison"]
    assert told_again["tally"] == {"done": 2}
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert record == json.loads((make.HOME / folder.relative_to(home) / "comparison.json").read_text(encoding="utf-8"))


def test_the_evaluation_renders_and_reads_nothing(home: Path) -> None:
    spec = doors.GOLDEN / "evaluation.yaml"
    plan = told("evaluate", spec, "--plan", "--device", "cpu", "--home", home)
    assert plan == {"evaluation": INDEX["evaluation"], "pictures": 4, "to_read": 0}
    again = told("evaluate", spec, *MACHINE, "--home", home)
    stored = json.loads((make.HOME / "evaluations" / INDEX["evaluation"] / "evaluation.json").read_text())
    computed = {"value", "low", "high", "std"}  # from what is stored, and rounded as this machine rounds

    def fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name not in computed} for row in rows]

    assert fixed(again["rows"]) == fixed(stored["rows"])
    by_metric = {row["metric"]: row["value"] for row in again["rows"]}
    assert by_metric["objects"] == next(row["value"] for row in stored["rows"] if row["metric"] == "objects")
    assert by_metric["is"] == pytest.approx(next(r["value"] for r in stored["rows"] if r["metric"] == "is"), rel=1e-4)


def test_prune_would_take_what_only_led_to_a_done_picture(home: Path) -> None:
    found = told("prune", "--older-than", "0h", "--home", home)
    assert found["deleted"] is False
    runs = [doors.record_calls(run, home, doors.GOLDEN)[2] for run in DONE]
    keep = {call["key"] for calls in runs for call in calls.values() if call["stage"] == "export"}
    planned = {call["key"] for calls in runs for call in calls.values()}
    broken = {call["key"] for call in doors.record_calls(RUNS["broken"], home, doors.GOLDEN)[2].values()}
    assert found["counts"] == {"artifact": len(planned - keep - broken)}
