"""What orchestration itself costs: a stage, a night's start, a night of a thousand jobs, memory, a second worker.

    python -m benchmarks.orchestration [stages] [night] [memory] [throughput] [--jobs 1000] [--renders 200]

`stages`: a stage that does nothing, through lookup, lease, commit and fsync. `night`: a jobs file read and checked, the
time to its first job, all its jobs (which do nothing but keep their record) and its page. `memory`: real renders of
the smallest size in one worker; the slope of its resident memory, fitted over the second half and over all, and its
open files. `throughput`: the same renders by one process and by two, one thread each. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.batch.jobs_file import read_jobs
from flows.batch.page import night_folder, write_night
from flows.batch.runner import Night
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.session import Session, _close, _open, prepare
from stages.call import Call
from stages.spec import RunOptions, make_spec
from stages.stage import Stage

if TYPE_CHECKING:
    from flows.rendering.session import Job, Result
    from stages.stage import Tensors

OPTIONS = RunOptions(threads=1)
SMALLEST = {"width": 64, "height": 64, "steps": 1, "method": {"name": "direct"}}


class Nothing(Stage):
    """A stage of one number."""

    name = "nothing"

    def run(self, *_: Any) -> Tensors:
        """One number."""
        return {"number": torch.zeros(1)}


class Chained(Call):
    """A call that differs from every other by its number."""

    def __init__(self, number: int, parents: dict[str, Call]) -> None:
        super().__init__(Nothing(), number, parents, str(number), (8, 8))


def stages(folder: Path, count: int = 200) -> dict[str, float]:
    """Milliseconds of a stage that does nothing, over a chain of them: median, slowest of twenty, and of the CPU."""
    home = Home(folder)
    session = Session(home, OPTIONS, Terminal(quiet=True))
    runner = session.runner(prepare(make_spec({"prompt": "a red disc"} | SMALLEST), home))
    call, took = Chained(0, {}), []
    runner.ensure(call, {})
    busy = time.process_time()
    for number in range(1, count + 1):
        call = Chained(number, {"before": call})
        began = time.perf_counter()
        runner.ensure(call, {})
        took.append(time.perf_counter() - began)
    return {
        "ms": 1e3 * statistics.median(took),
        "p95_ms": 1e3 * sorted(took)[int(0.95 * count)],
        "cpu_ms": 1e3 * (time.process_time() - busy) / count,
    }


def night(folder: Path, jobs: int) -> dict[str, float]:
    """Seconds to read a jobs file, to a night's first job, for all its jobs, and for its page."""
    home, path = Home(folder), folder / "jobs.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "a red disc", "seed": n} | SMALLEST) for n in range(jobs)))
    times = [time.perf_counter()]
    orders = read_jobs(path, home).jobs
    times.append(time.perf_counter())
    first: list[float] = []

    class Trivial(Session):
        def render(self, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
            first.append(time.perf_counter())
            _close(self.home.runs, _open(job, self.home.runs), "done", None)
            return None  # type: ignore[return-value]

    session = Trivial(home, OPTIONS, Terminal(quiet=True))
    states = Night(home, OPTIONS, Terminal(quiet=True), session=session).run(orders)
    times.append(time.perf_counter())
    assert set(states.values()) == {"done"}
    assert len(states) == jobs
    write_night(night_folder(home, orders), orders, dict.fromkeys(states, "left"), home)
    times.append(time.perf_counter())
    read, worked, page = (b - a for a, b in itertools.pairwise(times))
    return {"jobs": jobs, "read_s": read, "first_job_s": first[0] - times[1], "jobs_s": worked, "page_s": page}


def memory(folder: Path, renders: int) -> dict[str, float]:
    """MiB that resident memory grows by a render, and by how many the open files differ at the end."""
    home = Home(folder)
    session = Session(home, OPTIONS, Terminal(quiet=True))
    resident, opened = [], []
    for seed in range(renders):
        session.render(prepare(make_spec({"prompt": "a red disc", "seed": seed} | SMALLEST), home))
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20)
        opened.append(len(os.listdir("/proc/self/fd")))
    half = renders // 2
    return {
        "renders": renders,
        "slope_mib": float(np.polyfit(range(renders), resident, 1)[0]),
        "slope_second_half_mib": float(np.polyfit(range(half, renders), resident[half:], 1)[0]),
        "first_mib": resident[0],
        "last_mib": resident[-1],
        "open_files_first": opened[0],
        "open_files_most": max(opened),
        "open_files_last": opened[-1],
    }


def throughput(folder: Path, renders: int = 16) -> dict[str, float]:
    """How many times as fast two processes on two cores are as one on one, on the same renders in warm processes."""
    seconds = {}
    for workers in (1, 2):
        shares = [range(first, renders, workers) for first in range(workers)]
        seconds[workers] = _together(folder / str(workers), shares)
    return {"one_s": seconds[1], "two_s": seconds[2], "times": seconds[1] / seconds[2], "load": os.getloadavg()[0]}


def _together(folder: Path, shares: list[range]) -> float:
    """Seconds from a common start to the last end, of one process a share, each pinned to a core of its own."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.orchestration",
                "share",
                str(folder),
                json.dumps(list(share)),
                str(core),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for core, share in enumerate(shares)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # warm
    began = time.perf_counter()
    for process in processes:  # all begin before one is waited for
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
    for process in processes:
        assert process.wait() == 0
    return time.perf_counter() - began


def share(folder: str, seeds: str, core: str) -> None:
    """One process of `throughput`: warm up, wait for the start, render."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(core)]})
    home = Home(Path(folder))
    session = Session(home, OPTIONS, Terminal(quiet=True))
    spec = {"prompt": "a red disc", "width": 512, "height": 512, "steps": 12}
    session.render(prepare(make_spec(spec | {"seed": 1000 + int(core)}), home))
    print("warm", flush=True)
    sys.stdin.readline()
    for seed in json.loads(seeds):
        session.render(prepare(make_spec(spec | {"seed": seed}), home))


def main() -> None:
    """Measure what is named, or the first two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["stages", "night"])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--renders", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measures = {
            "stages": lambda: stages(root / "stages"),
            "night": lambda: night(_made(root / "night"), given.jobs),
            "memory": lambda: memory(root / "memory", given.renders),
            "throughput": lambda: throughput(root / "throughput"),
        }
        for name in given.what:
            found |= {f"{name}.{key}": value for key, value in measures[name]().items()}
    for name, value in found.items():
        print(f"{name:<32} {value:10.2f}")
    print(json.dumps(found))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["share"]:
        share(*sys.argv[2:])
    else:
        main()
