"""Which deaths are held against a job: a table of what may have happened to its process."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch.blame import deaths, last_those_that_died, memory_is_taken
from flows.batch.jobs_file import QueuedJob
from flows.home import Home
from flows.rendering import states
from flows.rendering.attempts import begin_attempt, end_attempt, reached
from flows.rendering.job import prepare
from flows.rendering.states import boot_id, state_of
from stages.planner.budget import TooLittleFreeError, host_bytes
from stages.spec import RunOptions, make_spec
from storage import Attempt

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job

HERE = socket.gethostname()
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
DEAD = 2**22 + 1  # above the largest process number of Linux


def job_of(home: Home, seed: int = 0) -> Job:
    return prepare(make_spec({"prompt": "a red disc", "seed": seed, "width": 64, "height": 64, "steps": 2}), home)


def given(home: Home, job: Job, *died: dict[str, Any]) -> None:
    """Record attempts at a job, each an hour after the one before, whose process is gone."""
    record = begin_attempt(job, home)
    usual = {"host": HERE, "process": DEAD, "boot": boot_id(), "reached": reached(job, home)}
    made = (
        Attempt(**(usual | {"started": BEGAN + timedelta(hours=number)} | changes))
        for number, changes in enumerate(died)
    )
    home.runs.save(record.revised(attempts=tuple(made)))


def other_lives(home: Home) -> None:
    """Let another job of the home end after every death."""
    end_attempt(home.runs, begin_attempt(job_of(home, seed=1), home), "done", None)


SAME: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("died", "lived", "counted"),
    [
        pytest.param([SAME, SAME, SAME], True, 3, id="at the same place while others lived"),
        pytest.param([SAME, SAME, SAME], False, 0, id="nothing else is known to have lived"),
        pytest.param([{"boot": "another"}, {"boot": "a third"}, SAME], True, 1, id="the machine was started again"),
        pytest.param([{"reached": "0 of 9"}, {"reached": "1 of 9"}, SAME], True, 1, id="it had gone on"),
        pytest.param([{"reached": None}] * 3, True, 0, id="attempts of an older version"),
        pytest.param([SAME, {"state": "interrupted", "finished": BEGAN}, SAME], True, 1, id="only the last in a row"),
        pytest.param([{"host": "gone"}, {"host": "gone"}], True, 2, id="on another machine, without progress"),
        pytest.param([SAME, {"process": os.getpid(), "started": datetime.now(UTC)}], True, 0, id="it still runs"),
    ],
)
def test_a_death_counts_where_the_job_explains_it(
    tmp_path: Path, died: list[dict[str, Any]], lived: bool, counted: int
) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    given(home, job, *({"boot": boot_id()} | each for each in died))
    if lived:
        other_lives(home)
    found = deaths(home, job)
    assert sum(death.counted for death in found) == counted, [death.why for death in found]
    assert all(death.why for death in found)


def test_a_process_of_the_same_number_is_another_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    given(home, job, {"process": os.getpid()})  # began long before this process
    assert len(deaths(home, job)) == 1
    assert state_of(home.runs.load(job.run)) == "lost"


def test_a_lost_attempt_is_recorded_by_the_next(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    given(home, job, SAME)
    begin_attempt(job, home)
    lost, now = home.runs.load(job.run).attempts
    assert (lost.state, lost.error, now.state) == ("lost", "its process died", "running")
    assert now.boot == boot_id()
    assert state_of(home.runs.load(job.run)) == "running"


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("interrupted", "stopped in denoise 0 after step 12 (SIGHUP)", "stopped after step 12"),
        ("interrupted", "stopped between stages", "stopped"),
        ("cancelled", "stopped in denoise 0 after step 3 (cancelled)", "cancelled"),
        ("failed", "ValueError: no", "failed"),
        ("done", None, "done"),
    ],
)
def test_a_state_says_what_happened(tmp_path: Path, state: str, error: str | None, says: str) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    end_attempt(home.runs, begin_attempt(job, home), state, error)
    assert state_of(home.runs.load(job.run)) == says


def test_a_job_that_died_waits_for_the_others(tmp_path: Path) -> None:
    home = Home(tmp_path)
    queue = [QueuedJob(str(seed), 0, "", job_of(home, seed)) for seed in range(3)]
    given(home, queue[0].job, SAME, SAME)
    given(home, queue[1].job, SAME)
    assert [queued.name for queued in last_those_that_died(queue, home)] == ["2", "1", "0"]


def test_memory_that_others_hold_is_told_from_too_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, options = job_of(Home(tmp_path)).plan, RunOptions()
    assert memory_is_taken(TooLittleFreeError("", host_bytes() // 2), plan, options)
    assert not memory_is_taken(TooLittleFreeError("", host_bytes() + 1), plan, options)
    assert not memory_is_taken(MemoryError(), plan, options)  # enough is free now
    assert not memory_is_taken(TooLittleFreeError("", 1), plan, RunOptions(memory=1 << 30))
    monkeypatch.setattr("stages.planner.budget.free_bytes", lambda device: 1 << 20)
    assert memory_is_taken(MemoryError(), plan, options)
    assert not memory_is_taken(ValueError("something else"), plan, options)


def test_the_start_of_the_machine_has_a_name() -> None:
    states.boot_id.cache_clear()
    assert states.boot_id() == boot_id()
    assert len(boot_id() or "") == 36
