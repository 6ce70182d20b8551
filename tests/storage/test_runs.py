from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage import DamagedRunError, InvalidNameError, RunExistsError, RunNotFoundError, RunRecord, Runs
from storage.runs import checked_run

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
HOSTILE = [
    "",
    ".",
    "..",
    "../night",
    "/etc",
    "a/b",
    "a\\b",
    "Night",
    "night\n",
    "-night",
    ".night",
    "nuit é",
    "x" * 122,
]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def record(name: str, minute: int = 0) -> RunRecord:
    return RunRecord(run=name, spec={"prompt": "a ring", "seed": 7}, created=START + timedelta(minutes=minute))


def test_a_run_is_made_loaded_and_replaced(runs: Runs) -> None:
    runs.create(record("night-1"))
    assert runs.load("night-1") == record("night-1")
    runs.save(runs.load("night-1").revised(state="done", outputs=["ring.png"]))
    assert (runs.load("night-1").state, runs.load("night-1").outputs) == ("done", ("ring.png",))
    assert [path.name for path in runs.folder("night-1").iterdir()] == ["run.json"]


def test_a_run_is_made_once(runs: Runs) -> None:
    runs.create(record("night-1"))
    with pytest.raises(RunExistsError, match="run night-1 exists already"):
        runs.create(record("night-1", minute=5))
    assert runs.load("night-1").created == START


def test_runs_are_listed_by_age_and_damaged_ones_named(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    assert runs.list() == ()
    for name, minute in (("b", 2), ("a", 1), ("c", 0), ("damaged", 3)):
        runs.create(record(name, minute))
    path = runs.folder("damaged") / "run.json"
    path.write_bytes(path.read_bytes().replace(b"ring", b"king"))
    (runs.root / "Not a run").mkdir()
    (runs.root / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [run.run for run in runs.list()] == ["c", "a", "b"]
    assert "differs from its checksum" in caplog.text
    with pytest.raises(DamagedRunError, match=r"damaged/run\.json cannot be read"):
        runs.load("damaged")
    assert path.exists()  # left for a person to look at


def test_a_record_in_the_folder_of_another_is_refused(runs: Runs) -> None:
    runs.create(record("a"))
    runs.create(record("b"))
    (runs.folder("b") / "run.json").write_bytes((runs.folder("a") / "run.json").read_bytes())
    with pytest.raises(DamagedRunError, match="is the record of run a"):
        runs.load("b")


def test_a_missing_run_is_named(runs: Runs) -> None:
    with pytest.raises(RunNotFoundError) as caught:
        runs.load("night-9")
    assert str(caught.value) == f"no run night-9 in {runs.root}."


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(runs: Runs, name: str) -> None:
    for call in (runs.load, runs.folder):
        with pytest.raises(InvalidNameError, match="a run is named by lower-case letters"):
            call(name)
    with pytest.raises(ValidationError):
        record(name)
    for save in (runs.create, runs.save):
        with pytest.raises(InvalidNameError):
            save(record("a").model_copy(update={"run": name}))
    assert not runs.root.exists()


@given(st.text(max_size=12) | st.from_regex(r"[a-z0-9][a-z0-9._-]*", fullmatch=True))
def test_an_accepted_name_is_one_path_component(name: str) -> None:
    from pathlib import Path

    try:
        checked_run(name)
    except InvalidNameError:
        return
    assert Path("/runs", name).resolve() == Path("/runs") / name
    assert Path(name).parts == (name,)


@pytest.mark.parametrize("name", [None, 7, b"night"])
def test_names_are_strings(runs: Runs, name: Any) -> None:
    with pytest.raises(InvalidNameError):
        runs.load(name)
