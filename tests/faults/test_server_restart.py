"""A scheduled night's whole set-up in real processes, with the Prefect server or the worker killed with -9 in it.

Server, `prefect-setup`, worker, `prefect deployment run overnight/overnight`, as the README has them. They take
minutes, most of it Prefect's own waits. `FREESCALE_PREFECT=20 pytest -s -m "" tests/faults/test_server_restart.py` has
nights of 20 jobs in place of four. `FREESCALE_AWAY` is how many seconds the server stays away.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flows.batch.jobs_file import read_jobs
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.session import Session
from stages.spec import RunOptions
from storage import RunNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.batch.jobs_file import QueuedJob

JOBS = int(os.environ.get("FREESCALE_PREFECT", "4"))
AWAY = float(os.environ.get("FREESCALE_AWAY", "20"))
PATIENCE = 1800.0
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.filterwarnings("default"),
]


class Place:
    """A Prefect server of its own port and folder, and commands that talk to it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api, self.stack, self.folder = f"http://127.0.0.1:{port}/api", stack, folder
        stack.callback(end_all, str(folder / "home"))
        self.env = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_API_PORT": str(port),
            "FREESCALE_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "DO_NOT_TRACK": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A process that stays, in a group of its own, ended with the test."""
        log = self.stack.enter_context((self.folder / f"{words[1]}.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=self.env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        self.stack.callback(end, process)
        return process

    def run(self, *words: str) -> str:
        """A command that ends well, and what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", *words], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> list[str]:
        """Of the flow runs that began, as the server has them."""
        request = urllib.request.Request(f"{self.api}/flow_runs/filter", b"{}", {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return [run["state_name"] for run in json.load(answer) if run["state_name"] != "Scheduled"]
        except OSError:
            return []


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_all(home: str) -> None:
    """Every process of a home that is left, such as a run whose worker is gone."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FREESCALE_HOME") == home:
                process.kill()


def wait(until: Callable[[], Any], what: str) -> None:
    patience = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < patience, what
        time.sleep(0.1)


def done(home: Home, jobs: tuple[QueuedJob, ...]) -> int:
    """How many of the jobs are."""
    count = 0
    for queued in jobs:
        try:
            count += home.runs.load(queued.job.run).state == "done"
        except RunNotFoundError:
            continue
    return count


def evening(tmp_path: Path, count: int) -> tuple[Home, tuple[QueuedJob, ...]]:
    """A home with `count` jobs in the folder that the nights watch."""
    home = Home(tmp_path / "home")
    jobs = home.root / "jobs"
    jobs.mkdir(parents=True)
    lines = [{"prompt": f"a red disc {n}", "size": "192x128", "steps": 8, "name": f"job-{n}"} for n in range(count)]
    (jobs / "tonight.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return home, read_jobs(jobs, home).jobs


def begin(place: Place) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Server and worker, and a night that was asked for."""
    server = place.start("prefect", "server", "start")
    wait(lambda: (place.folder / "server.log").stat().st_size, "the server starts")
    told = place.run("flows.cli.app", "prefect-setup", "--cron", "0 21 * * *", "--zone", "Europe/Vienna")
    assert "overnight/overnight: made, scheduled: 0 21 * * * Europe/Vienna" in told
    worker = work(place)
    ask(place)
    return server, worker


def ask(place: Place) -> None:
    """For a night, now."""
    parameters = json.dumps({"until": None, "options": {"threads": 1}})
    place.run("prefect", "deployment", "run", "overnight/overnight", "--params", parameters)


def work(place: Place) -> subprocess.Popen[bytes]:
    """A worker, one run at a time."""
    return place.start("prefect", "worker", "start", "--pool", "gpu-local", "--limit", "1")


def runs_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a worker's runs, and theirs."""
    return [child for child in psutil.Process(worker.pid).children(recursive=True) if child.is_running()]


def lose(worker: subprocess.Popen[bytes]) -> None:
    """A machine: its worker and the run die at once, and nobody tells the server."""
    for process in (*runs_of(worker), psutil.Process(worker.pid)):
        process.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_night_whose_machine_is_lost_goes_on_by_itself(tmp_path: Path, workers: int) -> None:
    """With one worker a service manager starts it again; with two, the other one takes up the night."""
    home, jobs = evening(tmp_path, JOBS)
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        _, *crew = begin(place)
        crew += [work(place) for _ in range(workers - 1)]
        wait(lambda: done(home, jobs) >= 1, "the first job")
        lose(next(worker for worker in crew if runs_of(worker)))
        gone, before = time.monotonic(), done(home, jobs)
        assert 1 <= before < len(jobs)
        assert place.states().count("Running") == 1  # as a server sees it that nobody tells
        if workers == 1:
            work(place)
        wait(lambda: "Crashed" in place.states(), "the automation crashes the run")
        told = time.monotonic() - gone
        wait(lambda: done(home, jobs) > before, "the night goes on")
        print(
            f"\n{before} of {len(jobs)} jobs done; crashed after {told:.0f} s, on after {time.monotonic() - gone:.0f} s"
        )
        wait(lambda: "Completed" in place.states(), "the night is told to be completed")
        assert sorted(place.states()) == ["Completed", "Crashed"]
    check_night(home, jobs, before)


def test_a_night_whose_process_is_killed_goes_on_by_itself(tmp_path: Path) -> None:
    home, jobs = evening(tmp_path, JOBS)
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        _, worker = begin(place)
        wait(lambda: done(home, jobs) >= 1, "the first job")
        for process in runs_of(worker):
            process.kill()
        gone, before = time.monotonic(), done(home, jobs)
        wait(lambda: done(home, jobs) > before, "the night goes on")
        print(f"\n{before} of {len(jobs)} jobs done; on after {time.monotonic() - gone:.0f} s")
        wait(lambda: "Completed" in place.states(), "the night is told to be completed")
        assert sorted(place.states()) == ["Completed", "Crashed"]  # told twice, run again once
    check_night(home, jobs, before)


def check_night(home: Home, jobs: tuple[QueuedJob, ...], before: int) -> None:
    """Every job done, one at most in an attempt that was lost, and none set aside.

    The `before` that were done at the kill are found done by the run that goes on, which is an attempt too.
    """
    assert done(home, jobs) == len(jobs)
    attempts = [[attempt.state for attempt in home.runs.load(queued.job.run).attempts] for queued in jobs]
    assert sum(states != ["done"] for states in attempts) <= before + 1
    assert sum("lost" in states for states in attempts) <= 1  # the one in flight
    assert {states.count("done") for states in attempts} <= {1, 2}
    assert sum(states.count("done") == 2 for states in attempts) <= before
    assert not list((home.root / "set-aside").glob("*"))


def test_a_night_goes_on_without_its_server_and_ends_with_it(tmp_path: Path) -> None:
    home, jobs = evening(tmp_path, JOBS)
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        server, _ = begin(place)
        wait(lambda: done(home, jobs) >= 1, "the first job")
        end(server)
        gone, before = time.monotonic(), done(home, jobs)
        time.sleep(AWAY)
        during = done(home, jobs) - before
        print(f"\n{during} jobs done in the {time.monotonic() - gone:.0f} s without a server, {before} before")
        place.start("prefect", "server", "start")
        wait(lambda: "Completed" in place.states(), "the night is told to be completed")
        assert place.states().count("Completed") == 1
    assert done(home, jobs) == len(jobs)
    assert during >= 1
    assert list(home.root.glob("nights/*/index.html"))
    quiet = Session(Home(tmp_path / "quiet"), RunOptions(threads=1), Terminal(quiet=True))
    for queued in jobs:
        again = Session(home, RunOptions(threads=1), Terminal(quiet=True)).render(queued.job)
        assert all(outcome.reused for outcome in again.outcomes)
        assert [a.state for a in home.runs.load(queued.job.run).attempts].count("done") == 2  # the night's and this
        assert again.pixels_sha256 == quiet.render(queued.job).pixels_sha256
