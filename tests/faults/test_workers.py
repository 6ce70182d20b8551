"""Many real workers on one store, killed and started again, one stopped until its leases have passed on.

`FREESCALE_WORKERS=8 pytest -m "" -s tests/faults/test_workers.py` is the long version; it prints what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.home import Home
from tests.processes import freescale

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess

WORKERS = int(os.environ.get("FREESCALE_WORKERS", "2"))
SEED = int(os.environ.get("FREESCALE_SEED", "0"))
KILLS = WORKERS + 2 if WORKERS > 2 else 1  # each of another run, so that none is set aside for killing its workers
JOBS = 2 * KILLS + 1
HEARTBEAT_SECONDS = 1.0
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


class Workers:
    """`freescale batch` in processes of their own over one home."""

    def __init__(self, home: Path, jobs: Path) -> None:
        self.home, self.jobs = home, jobs
        self.all: list[ForkServerProcess] = []
        home.mkdir()

    def start(self) -> ForkServerProcess:
        words = ["batch", str(self.jobs), "--home", str(self.home), "--checkpoint-every", "0", "--threads", "1"]
        self.all.append(freescale(self._told(len(self.all)), *words, heartbeat=HEARTBEAT_SECONDS))
        return self.all[-1]

    def at_work(self) -> list[ForkServerProcess]:
        return [process for process in self.all if process.exitcode is None]

    def finish(self) -> None:
        """Wait for all; those that were not killed have done their work."""
        for number, process in enumerate(self.all):
            process.join(600)
            told = self._told(number).with_suffix(".err").read_text()
            assert process.exitcode in (0, -signal.SIGKILL), told

    def held(self, process: ForkServerProcess) -> dict[str, int]:
        """The locks of the store that a process holds now, as the kernel says: name and inode."""
        files = {path.stat().st_ino: path.name for path in (self.home / "store" / "locks").glob("*.lock")}
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line]
        inodes = [int(words[-3].split(":")[2]) for words in lines if int(words[-4]) == process.pid]
        return {files[inode]: inode for inode in inodes if inode in files}

    def inode(self, lock: str) -> int:
        return (self.home / "store" / "locks" / lock).stat().st_ino

    def _told(self, number: int) -> Path:
        return self.home / f"worker-{number}"


def until(is_so: Callable[[], bool], what: str) -> float:
    """Wait; return how many seconds."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < 300, f"waited in vain until {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def claims(held: dict[str, int]) -> set[str]:
    return {lock for lock in held if lock.startswith("run-")}


def stop_one(workers: Workers, draw: random.Random) -> tuple[ForkServerProcess, dict[str, int]]:
    """Stop a worker that holds a run and a stage of it; it, and what it holds."""
    while True:
        process = draw.choice(workers.at_work())
        if len(workers.held(process)) == 2:
            os.kill(process.pid or 0, signal.SIGSTOP)
            if len(held := workers.held(process)) == 2:
                return process, held
            os.kill(process.pid or 0, signal.SIGCONT)
        time.sleep(0.005)


def kill_some(workers: Workers, zombie: ForkServerProcess, struck: set[str], draw: random.Random) -> None:
    """Kill workers in the middle of a run that met no harm before, each after some time; start others."""
    kills = 0
    while kills < KILLS:
        others = [process for process in workers.at_work() if process is not zombie]
        assert others, f"all was done after {kills} kills"
        process = draw.choice(others)
        if claims(workers.held(process)) - struck:
            time.sleep(draw.uniform(0.0, 0.5))
            if harmed := claims(workers.held(process)) - struck:
                process.kill()
                process.join()
                struck |= harmed
                workers.start()
                kills += 1
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not say who holds a lock")
def test_no_job_is_lost_and_no_key_has_two_contents(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    lines = [
        {"prompt": f"a {COLORS[n % 6]} disc on sand", "seed": n, "size": "160x128", "steps": 6} for n in range(JOBS)
    ]
    jobs.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    quiet, workers = Workers(tmp_path / "quiet", jobs), Workers(tmp_path / "home", jobs)
    quiet.start()
    quiet.finish()
    draw = random.Random(SEED)
    for _ in range(WORKERS):
        workers.start()
    zombie, held = stop_one(workers, draw)
    kill_some(workers, zombie, claims(held), draw)
    seconds = {
        name: until(lambda name=name, inode=inode: workers.inode(name) != inode, f"{name} is taken over")
        for name, inode in sorted(held.items(), key=lambda item: not item[0].startswith("run-"))
    }
    os.kill(zombie.pid or 0, signal.SIGCONT)
    workers.finish()
    print(f"\n{WORKERS} workers, {JOBS} jobs, {KILLS} kills; leases of the stopped one passed on after the kills in")
    print(
        ", ".join(f"{name[:12]} {passed:.1f} s" for name, passed in seconds.items()),
        f"(heartbeat {HEARTBEAT_SECONDS} s)",
    )
    compare(Home(tmp_path / "home"), Home(tmp_path / "quiet"))


def compare(busy: Home, quiet: Home) -> None:
    """Every job done, every artifact the same byte for byte, and none set aside on the way."""
    assert {run.run: run.state for run in busy.runs.list()} == {run.run: "done" for run in quiet.runs.list()}
    assert len(busy.runs.list()) == JOBS
    assert busy.store.list_keys() == quiet.store.list_keys()
    for key in busy.store.list_keys():
        assert busy.store.verify(key) is None
        ours, theirs = busy.store.peek(key), quiet.store.peek(key)
        assert ours is not None
        assert theirs is not None
        assert ours.files == theirs.files, f"{ours.stage} {key}"
    assert not (busy.store.root / "trash").exists()
    assert not list((busy.root / "set-aside").glob("*"))
