"""Nights of jobs: done once, tried again, set aside, taken up, ended by the clock."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch.jobs_file import read_jobs
from flows.batch.runner import Batch
from flows.batch.set_aside import set_aside_path
from flows.batch.window import Window
from flows.cli import app as cli
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering import session
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.spec import RunOptions, make_spec
from storage import StoreFullError
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job
    from flows.rendering.session import Result

PROMPTS = ("a red disc", "a poison square", "a green ring")
SMALL = {"size": "64x64", "steps": 2}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr("flows.batch.runner.BACKOFF_SECONDS", (0.0, 0.0))
    return Home(tmp_path / "home")


def night(home: Home, tmp_path: Path, **settings: Any) -> Batch:
    return Batch(home, RunOptions(threads=1), Terminal(quiet=True), **settings)


def queue(home: Home, tmp_path: Path, prompts: tuple[str, ...] = PROMPTS) -> Any:
    path = tmp_path / "jobs.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    return read_jobs(path, home, SMALL).jobs


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[str]:
    """Let the render of the poison fail so often; return the prompts that were tried."""
    tried: list[str] = []
    render = Session.render

    def faulty(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        tried.append(job.spec.prompt)
        if "poison" in job.spec.prompt and tried.count(job.spec.prompt) <= times:
            raise error
        return render(self, job, out, overwrite)

    monkeypatch.setattr(session.Session, "render", faulty)
    return tried


def test_the_poison_is_set_aside_and_the_others_are_as_in_a_quiet_run(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, RuntimeError("poisoned"), times=99)
    jobs = queue(home, tmp_path)
    states = night(home, tmp_path).run(jobs)
    assert [states[o.job.run] for o in jobs] == ["done", "set aside", "done"]
    assert tried.count("a poison square") == 3
    poison = next(o for o in jobs if "poison" in o.job.spec.prompt)
    record = json.loads(set_aside_path(home, poison.job.run).read_text())
    assert record["error"] == "RuntimeError: poisoned"
    assert "Traceback" in record["traceback"]
    assert make_spec(record["spec"]) == poison.job.spec
    quiet = Home(tmp_path / "quiet")
    for queued in jobs:
        if queued is not poison:
            alone = session_in(quiet.root, threads=1).render(prepare(queued.job.spec, quiet))
            made = session_in(home.root, threads=1).render(queued.job)
            assert made.pixels_sha256 == alone.pixels_sha256
            assert all(outcome.reused for outcome in made.outcomes)
    tried.clear()
    assert night(home, tmp_path).run(jobs)[poison.job.run] == "set aside"
    assert "a poison square" not in tried
    night(home, tmp_path, again=True).run(jobs)
    assert tried.count("a poison square") == 3


@pytest.mark.thorough
def test_a_passing_fault_costs_a_retry(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, OSError("the cable"), times=2)
    states = night(home, tmp_path).run(queue(home, tmp_path))
    assert set(states.values()) == {"done"}
    assert tried.count("a poison square") == 3


@pytest.mark.thorough
def test_a_full_disk_is_waited_for_and_counts_for_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, StoreFullError("no space."), times=5)
    monkeypatch.setattr("flows.batch.runner.POLL_SECONDS", 0.0)
    states = night(home, tmp_path).run(queue(home, tmp_path, PROMPTS[1:2]))
    assert set(states.values()) == {"done"}
    assert len(tried) == 6


@pytest.mark.thorough
def test_a_run_held_by_another_process_is_passed_over(home: Home, tmp_path: Path) -> None:
    jobs = queue(home, tmp_path, PROMPTS[::2])
    working = night(home, tmp_path)
    with home.runs.claim(jobs[0].job.run):
        thread = threading.Thread(target=working.run, args=(jobs,))
        thread.start()
        while working.states.get(jobs[1].job.run) != "done":
            assert thread.is_alive()
            time.sleep(0.01)
        assert working.states[jobs[0].job.run] == "left"
    thread.join(60)
    assert set(working.states.values()) == {"done"}


def test_the_window(home: Home, tmp_path: Path) -> None:
    jobs = queue(home, tmp_path)
    closed = Window(until=datetime(2020, 1, 1, tzinfo=UTC))
    assert set(night(home, tmp_path, window=closed).run(jobs).values()) == {"left"}
    evening = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
    assert Window.of("06:30", "Europe/Vienna", now=evening).until == datetime(2026, 11, 24, 5, 30, tzinfo=UTC)
    for bad in ({"until": "25:00"}, {"until": "6.30"}, {"until": "06:30", "zone": "Mars/Base"}, {"at_end": "maybe"}):
        with pytest.raises(SpecError):
            Window.of(**{"until": None, **bad})  # type: ignore[arg-type]


def test_command_line(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["freescale", "batch", *words, "--home", str(home.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(
        '{"prompt": "a red disc", "size": "64x64", "steps": 2, "name": "one"}\n{"prompt": "y", "size": "9"}\n'
    )
    assert call(str(jobs)) == 2
    assert "jobs.jsonl:2" in capsys.readouterr().err
    assert not (home.root / "store").exists()
    assert call(str(jobs), "--skip-bad", "--out", str(tmp_path / "out"), "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["jobs"][0]["state"] == "done"
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.thorough
def test_a_pause_frees_the_device_and_keeps_the_step(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = queue(home, tmp_path, PROMPTS[:1])
    pause_file = home.root / "paused"
    told: list[str] = []
    release, started = Session.release, Terminal.started

    def freed(self: Session) -> None:
        release(self)
        told.append("free")
        threading.Timer(1.0, pause_file.unlink).start()

    def begun(self: Terminal, call: Any, resumed_at: int | None) -> None:
        started(self, call, resumed_at)
        if call.stage.name == "base_denoise" and "free" not in told:
            pause_file.touch()
            while not working._halt.is_set():
                time.sleep(0.01)
        if resumed_at is not None:
            told.append(f"{call.stage.name} from {resumed_at}")

    working = night(home, tmp_path)
    monkeypatch.setattr(Session, "release", freed)
    monkeypatch.setattr(Terminal, "started", begun)
    assert set(working.run(jobs).values()) == {"done"}
    assert told == ["free", "base_denoise from 1"]
