"""What goes wrong around a batch: its terminal, its log, its disks, its signals. No job may pay for it."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch import runner
from flows.batch.jobs_file import read_jobs
from flows.batch.runner import Batch
from flows.home import Home
from flows.rendering import room
from stages.observer import NullObserver
from stages.spec import RunOptions
from tests.disk import Disk
from tests.processes import freescale
from tests.toys import points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.batch.runner import State
    from stages.call import Call

JOBS = int(os.environ.get("FREESCALE_NIGHT", "2"))  # 20 in the long version
SECONDS = 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path / "home"))
    lines = [{"prompt": "a red disc on sand", "seed": n, "size": "64x64", "steps": 3} for n in range(JOBS)]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


def batch(folder: Path, *words: str) -> ForkServerProcess:
    return freescale(folder / "told", "batch", str(folder / "jobs.jsonl"), "--threads", "1", *words)


def ended(process: ForkServerProcess) -> int | None:
    process.join(SECONDS)
    return process.exitcode


def complete(folder: Path) -> list[str]:
    """Assert that every job is done, once and with no attempt lost, and none set aside; return all remarks."""
    home = Home(folder / "home")
    records = home.runs.list()
    assert len(records) == JOBS
    assert not list((folder / "home").glob("set-aside/*"))
    for record in records:
        assert record.state == "done"
        assert {attempt.state for attempt in record.attempts} <= {"done", "interrupted", "failed"}
    return [remark for record in records for attempt in record.attempts for remark in attempt.remarks]


def full_log(told: Path) -> None:
    told.symlink_to("/dev/full")


def closed_terminal(told: Path) -> None:
    """A terminal whose other end is closed: every write is an input/output error."""
    ours, theirs = pty.openpty()
    told.symlink_to(os.ttyname(theirs))
    threading.Thread(target=_hang_up, args=(ours, theirs), daemon=True).start()


def _hang_up(ours: int, theirs: int) -> None:
    os.read(ours, 1)  # the first that is written
    os.close(theirs)
    os.close(ours)


def broken_pipe(told: Path) -> None:
    """A pipe whose reader goes away after the first byte, as `| head -c 1` does."""
    os.mkfifo(told)

    def read() -> None:
        with told.open("rb", buffering=0) as pipe:
            pipe.read(1)

    threading.Thread(target=read, daemon=True).start()


@pytest.mark.parametrize(
    ("lose", "stream"),
    points(
        (full_log, closed_terminal, broken_pipe),
        ("out", "err"),
        kept=lambda lose, stream: (lose, stream) in ((full_log, "err"), (broken_pipe, "out")),
    ),
)
def test_an_output_that_is_lost_ends_no_work(folder: Path, lose: Callable[[Path], None], stream: str) -> None:
    lose(folder / f"told.{stream}")
    other = folder / f"told.{'err' if stream == 'out' else 'out'}"
    assert ended(batch(folder)) == 0, other.read_text()
    remarks = complete(folder)
    if stream == "err":
        assert len(remarks) == 1, "it is noted, and once"
        assert "could not be written" in remarks[0]
    assert len(list((folder / "home" / "nights").glob("*/index.html"))) == 1


OTHERS = [pytest.param(number, marks=pytest.mark.thorough) for number in (signal.SIGHUP, signal.SIGINT)]


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS])
def test_a_signal_stops_with_a_checkpoint_and_is_held_against_no_job(folder: Path, number: signal.Signals) -> None:
    home = Home(folder / "home")
    for _ in range(2):  # nights
        process = batch(folder)
        patience = time.monotonic() + SECONDS
        while not any(record.state == "running" for record in home.runs.list()):
            assert time.monotonic() < patience
            assert process.is_alive()
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, number)
        if ended(process) == 0:  # it was at its end already
            break
        assert process.exitcode == 3
    stopped = [record for record in home.runs.list() if record.state == "interrupted"]
    assert all(number.name in (record.error or "") for record in stopped)
    assert ended(batch(folder)) == 0
    complete(folder)


@pytest.mark.thorough
@pytest.mark.parametrize("boot", ["this", pytest.param("another", marks=pytest.mark.thorough)])
def test_a_process_that_is_killed_costs_no_job_its_night(folder: Path, boot: str) -> None:
    """With kill -9 in three nights, or with a machine that was started again; the fourth night does the rest."""
    home = Home(folder / "home")
    for _ in range(3):
        process = batch(folder)
        patience = time.monotonic() + SECONDS
        while process.is_alive() and not any(record.state == "running" for record in home.runs.list()):
            assert time.monotonic() < patience
            time.sleep(0.01)
        process.kill()
        assert ended(process) in (0, -signal.SIGKILL)
        for record in home.runs.list() if boot == "another" else ():
            started_before = [attempt.model_copy(update={"boot": "another"}) for attempt in record.attempts]
            home.runs.save(record.revised(attempts=tuple(started_before)))
    assert ended(batch(folder)) == 0
    records = home.runs.list()
    assert [record.state for record in records] == ["done"] * JOBS
    assert all([attempt.state for attempt in record.attempts].count("done") == 1 for record in records)
    assert not list((folder / "home").glob("set-aside/*"))


class Broken(NullObserver):
    """A display that raises at the first step."""

    def stepped(self, call: Call, step: int) -> None:
        raise OSError(errno.EIO, "Input/output error")


def test_an_observer_that_raises_is_noted_and_ends_no_work(folder: Path) -> None:
    home = Home(folder / "home")
    jobs = read_jobs(folder / "jobs.jsonl", home).jobs
    assert set(Batch(home, RunOptions(threads=1), Broken()).run(jobs).values()) == {"done"}
    (remark,) = complete(folder)
    assert "Input/output error" in remark


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("this user may mount no disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def work_in_thread(home: Home, jobs: Any, out: Path) -> tuple[threading.Thread, list[dict[str, State]]]:
    states: list[dict[str, State]] = []
    work = Batch(home, RunOptions(threads=1), NullObserver(), out=out)
    thread = threading.Thread(target=lambda: states.append(work.run(jobs)), daemon=True)
    thread.start()
    return thread, states


@pytest.mark.thorough
def test_a_full_disk_for_the_pictures_is_waited_for(folder: Path, small_disk: Path) -> None:
    home = Home(folder / "home")
    jobs: tuple[QueuedJob, ...] = read_jobs(folder / "jobs.jsonl", home).jobs
    block = small_disk / "block"
    block.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    thread, states = work_in_thread(home, jobs, small_disk)
    patience = time.monotonic() + SECONDS
    while not home.runs.list():
        assert time.monotonic() < patience
        time.sleep(0.01)
    time.sleep(2 * runner.POLL_SECONDS)
    assert thread.is_alive()
    block.unlink()
    thread.join(SECONDS)
    assert [set(each.values()) for each in states] == [{"done"}]
    complete(folder)
    assert len(list(small_disk.glob("*.png"))) == JOBS


@pytest.mark.thorough
def test_a_full_home_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write into the store is refused, from the first on, until somebody makes room."""
    home = Home(folder / "home")
    jobs = read_jobs(folder / "jobs.jsonl", home).jobs
    (home.root / "store").mkdir(parents=True, exist_ok=True)
    waited = threading.Event()

    def wait(folder: Path, halt: threading.Event) -> None:
        waited.set()
        disk.fails_at = None  # room was made

    monkeypatch.setattr(runner, "wait_for_room", wait)
    with monkeypatch.context() as patch:
        disk = Disk(patch, home.root / "store", errno.ENOSPC, fails_at=1, once=False)
        states = Batch(home, RunOptions(threads=1), NullObserver()).run(jobs[:1])
    assert set(states.values()) == {"done"}
    assert waited.is_set()
    (record,) = home.runs.list()
    assert record.state == "done"


def test_a_program_that_says_it_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda folder: 0 if folder == tmp_path else 1 << 40)
    assert room.full_folder(RuntimeError("ffmpeg ended with 1"), tmp_path) == tmp_path
    monkeypatch.setattr(room, "free_bytes", lambda folder: 1 << 40)
    assert room.full_folder(RuntimeError("ffmpeg ended with 1"), tmp_path) is None
    nested = RuntimeError("the picture could not be written")
    nested.__cause__ = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.png"))
    assert room.full_folder(nested, tmp_path / "out") == tmp_path
