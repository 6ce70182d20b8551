"""A run that is rendered tells where it is: in a file of the home, in `show` and `runs`, on the page of its batch."""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch import live_page
from flows.batch.jobs_file import read_jobs
from flows.batch.live_page import LivePage
from flows.batch.runner import Batch
from flows.cli.tables import print_run, print_runs
from flows.home import Home
from flows.rendering import live
from flows.rendering.attempts import begin_attempt, end_attempt
from flows.rendering.costs import seconds_spent
from flows.rendering.job import prepare
from flows.rendering.live import last_sign, progress_of, running
from flows.rendering.session import Session
from flows.rendering.states import boot_id, retries
from stages.observer import NullObserver
from stages.spec import RunOptions, make_spec
from storage import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flows.rendering.job import Job
    from stages.call import Call

OPTIONS = RunOptions(threads=1)
DEAD = 2**22 + 1  # above the largest process number of Linux
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


class AtEachStep(NullObserver):
    """An observer that looks at something after each step, before the step is written."""

    def __init__(self, look: Callable[[Call, int], None]) -> None:
        self.look = look

    def stepped(self, call: Call, step: int) -> None:
        """Look."""
        self.look(call, step)


def job_of(home: Home, steps: int = 3) -> Job:
    fields = {"prompt": "a red disc", "width": 64, "height": 64, "steps": steps, "method": {"name": "direct"}}
    return prepare(make_spec(fields), home)


def record_of(home: Home, job: Job, *attempts: Attempt) -> Any:
    """Record attempts at a job."""
    home.runs.save(begin_attempt(job, home).revised(attempts=attempts))
    return home.runs.load(job.run)


def test_a_render_tells_its_stage_and_step_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)
    home = Home(tmp_path)
    job, seen = job_of(home), []

    def look(call: Call, step: int) -> None:
        at = running(home)[job.run]
        seen.append((at.stage, at.step, at.steps))
        if step == 3:
            print_run(home, job.run, as_json=False)
            print_runs(home, as_json=False)
            print_runs(home, as_json=True)

    Session(home, OPTIONS, AtEachStep(look)).render(job)
    label = next(call.label for call in job.plan.calls if call.stage.name == "base_denoise")
    assert seen == [(label, None, 3), (label, 1, 3), (label, 2, 3)]  # of the step before, as it is written after
    shown = capsys.readouterr().out
    assert re.search(rf"\n  {label}, step 2 of 3, \d+ s left, \d+ % done at \d\d:\d\d:\d\d on ", shown)
    assert re.search(rf"{job.run} +running: {label}, step 2 of 3, \d+ s left ", shown)
    assert json.loads(shown.splitlines()[-1])[0]["progress"]["step"] == 2
    assert (running(home), last_sign(home, job.run)) == ({}, None)
    print_run(home, job.run, as_json=True)
    assert json.loads(capsys.readouterr().out)["progress"] is None


def test_a_disk_that_takes_no_progress_file_ends_no_render(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "progress").write_text("a file where a folder should be")
    home = Home(tmp_path)
    job = job_of(home, steps=1)
    assert Session(home, OPTIONS, NullObserver()).render(job).run == job.run
    record = home.runs.load(job.run)
    assert (record.state, record.attempts[-1].remarks) == ("done", ())


def left_behind(home: Home, job: Job, **changes: Any) -> None:
    """The progress file of a process, as it is after the process was killed."""
    at = {"stage": "base_denoise 0", "step": 2, "steps": 3, "percent": 40.0, "seconds_left": 60.0}
    who = {"at": BEGAN + timedelta(seconds=90), "host": socket.gethostname(), "process": DEAD}
    path = home.root / "cache" / "progress" / f"{job.run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(live.LiveProgress(**(at | who | changes)).model_dump_json(), encoding="utf-8")


@pytest.mark.parametrize(
    ("process", "written", "age", "is_shown"),
    [
        pytest.param(DEAD, {"process": DEAD}, 1.0, False, id="its process was killed"),
        pytest.param(os.getpid(), {"process": os.getpid()}, 1.0, True, id="it runs"),
        pytest.param(os.getpid(), {"process": DEAD}, 1.0, False, id="of the process of an earlier attempt"),
        pytest.param(os.getpid(), {"process": os.getpid()}, 9.0, False, id="of an earlier attempt of this process"),
        pytest.param(os.getpid(), {"process": os.getpid(), "host": "another"}, 1.0, False, id="of another machine"),
    ],
)
def test_what_a_killed_process_left_is_not_shown_as_progress(
    tmp_path: Path, process: int, written: dict[str, Any], age: float, is_shown: bool
) -> None:
    home, now = Home(tmp_path), datetime.now(UTC)
    job = job_of(home)
    attempt = Attempt(started=now - timedelta(seconds=5), process=process, host=socket.gethostname(), boot=boot_id())
    record = record_of(home, job, attempt)
    left_behind(home, job, at=now - timedelta(seconds=age), **written)
    assert (progress_of(home, record) is not None) == is_shown
    assert (job.run in running(home)) == is_shown


def test_a_damaged_progress_file_is_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    left_behind(home, job)
    (home.root / "cache" / "progress" / f"{job.run}.json").write_text("{half")
    (home.root / "cache" / "progress" / "no-such-run.json").write_text("{}")
    assert last_sign(home, job.run) is None
    assert running(home) == {}


@pytest.mark.parametrize(
    ("states", "count"),
    [
        (["done"], 0),
        (["interrupted", "interrupted", "done"], 0),
        (["cancelled", "done", "done"], 0),
        (["failed", "failed", "failed"], 2),
        (["lost", "interrupted", "failed", "done", "done"], 2),
        ([], 0),
    ],
)
def test_retries_are_tries_after_a_failure_or_a_death(states: list[Any], count: int) -> None:
    attempts = [Attempt(started=BEGAN, host="here", process=1, state=state) for state in states]
    assert retries(attempts) == count


def test_a_killed_attempt_costs_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = job_of(home)
    stopped = Attempt(
        started=BEGAN - timedelta(hours=1), finished=BEGAN - timedelta(hours=1, seconds=-7), state="interrupted"
    )
    killed = Attempt(started=BEGAN, host=socket.gethostname(), process=DEAD, boot=boot_id())
    record = record_of(home, job, stopped, killed)
    assert seconds_spent(home, job.plan, record) == pytest.approx(7.0)
    left_behind(home, job)
    assert seconds_spent(home, job.plan, record) == pytest.approx(97.0)
    end_attempt(home.runs, begin_attempt(job, home), "interrupted", None)
    left_behind(home, job, at=BEGAN + timedelta(hours=5))  # what a later process wrote changes nothing
    after = home.runs.load(job.run)
    assert [attempt.state for attempt in after.attempts] == ["interrupted", "lost", "interrupted"]
    assert seconds_spent(home, job.plan, after) == pytest.approx(97.0, abs=1.0)


def page_data(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return data


def test_the_page_of_a_batch_is_there_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)
    monkeypatch.setattr(live_page, "SHARE", 0)
    monkeypatch.setattr(live_page, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(live_page, "LOOK_SECONDS", 0.05)
    home = Home(tmp_path)
    (tmp_path / "jobs.txt").write_text("a red disc\na blue star\n", encoding="utf-8")
    listed = read_jobs(
        tmp_path / "jobs.txt", home, {"width": 64, "height": 64, "steps": 3, "method": {"name": "direct"}}
    )
    first, second = (queued.job.run for queued in listed.jobs)
    made: list[str] = []
    card = live_page.write_running_page.__globals__["job_card"]
    monkeypatch.setattr(
        "flows.batch.page.job_card", lambda *given: made.append(given[1].run + given[2]) or card(*given)
    )
    told: list[dict[str, Any]] = []

    def until(found: Callable[[dict[str, Any]], bool]) -> None:
        for _ in range(600):
            if page.path is not None and page.path.is_file() and found(data := page_data(page.path)):
                told.append(data)
                return
            live_page.threading.Event().wait(0.05)
        raise AssertionError("the page was not renewed")

    def look(call: Call, step: int) -> None:
        if step == 2:
            run = next(iter(running(home)))
            until(
                lambda data: any(job["run"] == run and (job.get("progress") or {}).get("step") for job in data["jobs"])
            )

    with LivePage(home) as page:
        page.show(listed)
        states = Batch(home, OPTIONS, AtEachStep(look)).run(listed.jobs)
        until(lambda data: [job["state"] for job in data["jobs"]] == ["done", "done"])
        final = page.finish(states)
    assert [job["state"] for job in told[0]["jobs"]] == ["running", "not begun"]
    assert told[0]["live"]["next"] == listed.jobs[1].name
    assert [job["state"] for job in told[1]["jobs"]] == ["done", "running"]
    assert (told[1]["live"]["next"], told[2]["live"]["next"]) == (None, None)
    assert "picture" in told[1]["jobs"][0]
    assert [made.count(run + "done") for run in (first, second)] == [1, 1]  # a finished job's card is made once
    assert "live" not in page_data(final[0])
    assert final[0] == page.path


def test_a_page_that_cannot_be_written_ends_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live_page, "write_running_page", full)
    home = Home(tmp_path)
    (tmp_path / "jobs.txt").write_text("a red disc\n", encoding="utf-8")
    listed = read_jobs(tmp_path / "jobs.txt", home, {"width": 64, "height": 64, "steps": 1})
    with LivePage(home) as page:
        assert page.show(listed) is listed
        end_attempt(home.runs, begin_attempt(listed.jobs[0].job, home), "cancelled", "stopped in x after step 1")
    assert page_data(page.path)["jobs"][0]["state"] == "cancelled"  # the end of the context wrote the last one
