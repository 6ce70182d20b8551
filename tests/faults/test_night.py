"""A night of jobs over two workers with a tenth of them faulty, against the same night in quiet.

`FREESCALE_NIGHT=100 pytest -m "" tests/faults/test_night.py` is the long version, whose figures are in
`docs/lab/reliability.md`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.batch import runner as batch
from flows.batch.jobs_file import read_jobs
from flows.batch.set_aside import set_aside_path
from flows.cli.terminal import Terminal
from flows.cluster.batch import ClusterBatch
from flows.cluster.connect import cluster
from flows.home import Home
from flows.rendering.attempts import begin_attempt as begin
from flows.rendering.session import Session
from stages.spec import RunOptions
from storage import StoreFullError
from tests.processes import forked_workers

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job
    from flows.rendering.session import Result

JOBS = int(os.environ.get("FREESCALE_NIGHT", "6"))
FAULTS = ("killed", "memory", "disk", "poison")  # each once in forty jobs, and at least once
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("default")]  # Dask's own warnings are not ours


def faulty(dask_worker: Any) -> None:
    """Let what a job's seed says go wrong in this worker: its death, memory and disk once, the poison always."""
    render = Session.render

    def rendering(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        fault = fault_of(job.spec.seed)
        struck = self.home.root / f"struck-{job.spec.seed}"
        if fault == "poison":
            raise RuntimeError("poisoned")
        if fault is not None and not struck.exists():
            struck.touch()
            if fault == "killed":
                begin(job, self.home)
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("no memory") if fault == "memory" else StoreFullError("no room.")
        return render(self, job, out, overwrite)

    Session.render = rendering  # type: ignore[method-assign]
    batch.BACKOFF_SECONDS = (0.1, 0.1)


def fault_of(seed: int) -> str | None:
    """Every tenth job has one, each kind in turn; in a short night the first four jobs."""
    if JOBS < 40:
        return FAULTS[seed] if seed < len(FAULTS) else None
    return FAULTS[seed // 10 % len(FAULTS)] if seed % 10 == 0 else None


def test_every_healthy_job_is_done_once_and_the_poison_set_aside(tmp_path: Path) -> None:
    import cloudpickle
    from distributed import WorkerPlugin

    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Faults(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            faulty(worker)

    home, quiet = Home(tmp_path / "home"), Home(tmp_path / "quiet")
    path = tmp_path / "jobs.jsonl"
    lines = [
        {"prompt": f"a {COLORS[n % 6]} disc on sand", "seed": n, "size": "160x128", "steps": 2} for n in range(JOBS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    jobs = read_jobs(path, home).jobs
    options = RunOptions(threads=1)
    with forked_workers(), cluster(home, None, 2) as client:
        client.register_plugin(Faults())
        states = ClusterBatch(home, options, client).run(jobs)
    struck = {queued.job.run: fault_of(queued.job.spec.seed) for queued in jobs}
    assert {run for run, state in states.items() if state == "set aside"} == {
        run for run, fault in struck.items() if fault == "poison"
    }
    assert all(state in ("done", "set aside") for state in states.values())
    session = Session(quiet, options, Terminal(quiet=True))
    for queued in jobs:
        run = queued.job.run
        if struck[run] == "poison":
            assert json.loads(set_aside_path(home, run).read_text())["error"] == "RuntimeError: poisoned"
            continue
        again = Session(home, options, Terminal(quiet=True)).render(queued.job)
        assert all(outcome.reused for outcome in again.outcomes)
        assert again.pixels_sha256 == session.render(queued.job).pixels_sha256
        ended = [attempt.state for attempt in home.runs.load(run).attempts[:-1]]
        assert ended.count("done") == 1, ended
    print(dict(Counter(str(fault) for fault in struck.values())), dict(Counter(states.values())))
