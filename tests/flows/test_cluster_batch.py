"""A night over the workers of a real Dask cluster: the same bytes as alone, deaths, poison, a stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch.jobs_file import read_jobs
from flows.batch.set_aside import set_aside_path
from flows.cluster.batch import ClusterBatch
from flows.cluster.connect import cluster, uses_workers
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.spec import RunOptions
from tests.homes import session_in
from tests.processes import forked_workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from flows.batch.jobs_file import QueuedJob
    from flows.batch.runner import State
    from flows.rendering.job import Job
    from flows.rendering.session import Result

OPTIONS = RunOptions(threads=1, checkpoint_every=0)

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[Client]:
    with forked_workers(), cluster(home, None, 2) as client:
        yield client


def queue(home: Home, *prompts: str, steps: int = 4) -> tuple[QueuedJob, ...]:
    path = home.root / f"jobs-{abs(hash(prompts))}.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    return read_jobs(path, home, {"size": "160x128", "steps": steps}).jobs


def alone(home: Home, queued: QueuedJob) -> str:
    quiet = Home(home.root / "quiet")
    return session_in(quiet.root, threads=1).render(prepare(queued.job.spec, quiet)).pixels_sha256


def stored(home: Home, queued: QueuedJob) -> Result:
    result = session_in(home.root, threads=1, checkpoint_every=0).render(queued.job)
    assert all(outcome.reused for outcome in result.outcomes)
    return result


def poison(dask_worker: Any) -> None:
    """Let a job of these words kill the worker that renders it."""
    render = Session.render

    def deadly(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        if "poison" in job.spec.prompt:
            from flows.rendering.attempts import begin_attempt

            begin_attempt(job, self.home)  # as a render begins: the attempt is written down
            os.kill(os.getpid(), signal.SIGKILL)
        return render(self, job, out, overwrite)

    Session.render = deadly  # type: ignore[method-assign]


@pytest.mark.thorough
def test_the_same_bytes_as_alone_over_two_workers(home: Home, client: Client) -> None:
    jobs = queue(home, "a red disc on sand", "a green ring on snow", "a blue star on sand", steps=2)
    at_once: list[int] = []
    working: list[str] = []

    def wrap(queued: QueuedJob, work: Any) -> State:
        working.append(queued.name)
        at_once.append(len(working))
        state: State = work()
        working.remove(queued.name)
        return state

    batch = ClusterBatch(home, OPTIONS, client, wrap=wrap)
    assert batch.width == 2
    assert set(batch.run(jobs).values()) == {"done"}
    assert max(at_once) == 2
    for queued in jobs:
        assert stored(home, queued).pixels_sha256 == alone(home, queued)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_worker_that_is_spawned_makes_the_same_bytes(tmp_path: Path) -> None:
    """As outside of tests, where no server forks the workers."""
    import dask

    home = Home(tmp_path)
    (queued,) = queue(home, "a red disc on snow")
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}), cluster(home, None, 1) as client:
        states = ClusterBatch(home, OPTIONS, client).run([queued])
    assert states == {queued.job.run: "done"}
    assert stored(home, queued).pixels_sha256 == alone(home, queued)


@pytest.mark.thorough
def test_a_killed_workers_job_goes_on_elsewhere(home: Home, client: Client) -> None:
    (queued,) = queue(home, "a purple square on snow", steps=10)
    states: list[dict[str, State]] = []
    thread = threading.Thread(target=lambda: states.append(ClusterBatch(home, OPTIONS, client).run([queued])))
    thread.start()
    patience = time.monotonic() + 120
    while not list(home.root.glob("store/steps/*/step-*.json")):
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.kill(home.runs.load(queued.job.run).attempts[-1].process, signal.SIGKILL)
    thread.join(180)
    assert states == [{queued.job.run: "done"}]
    attempts = home.runs.load(queued.job.run).attempts
    assert [attempt.state for attempt in attempts] == ["lost", "done"]
    resumed = [home.store.find(call.key) for call in home.runs.load(queued.job.run).plan]
    assert any(manifest and manifest.resumed_at for manifest in resumed)
    assert stored(home, queued).pixels_sha256 == alone(home, queued)


@pytest.mark.thorough
def test_poison_is_set_aside_and_takes_no_neighbour_with_it(home: Home, client: Client) -> None:
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    from distributed import WorkerPlugin

    class Poison(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            poison(worker)

    client.register_plugin(Poison())
    jobs = queue(home, "a poison disc", "a red ring on snow", "a yellow ring on snow", steps=2)
    states = ClusterBatch(home, OPTIONS, client).run(jobs)
    assert [states[queued.job.run] for queued in jobs] == ["set aside", "done", "done"]
    assert "its process died 3 times at " in set_aside_path(home, jobs[0].job.run).read_text()
    for queued in jobs[1:]:
        assert stored(home, queued).pixels_sha256 == alone(home, queued)


def test_a_stop_reaches_the_workers(home: Home, client: Client) -> None:
    (queued,) = queue(home, "a long purple disc", steps=400)
    batch = ClusterBatch(home, OPTIONS, client)
    states: list[dict[str, State]] = []
    thread = threading.Thread(target=lambda: states.append(batch.run([queued])))
    thread.start()
    patience = time.monotonic() + 120
    while not (home.runs.folder(queued.job.run) / "run.json").exists():
        assert time.monotonic() < patience
        time.sleep(0.05)
    batch.stop.set()
    thread.join(60)
    assert states == [{queued.job.run: "left"}]
    assert home.runs.load(queued.job.run).state == "interrupted"


def test_what_cannot_be_is_refused() -> None:
    assert (uses_workers(None, None), uses_workers(None, 2), uses_workers("tcp://x:1", None)) == (False, True, True)
    for address, workers in ((None, 0), ("tcp://x:1", 2)):
        with pytest.raises(SpecError):
            uses_workers(address, workers)


def test_an_address_where_nobody_answers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.cluster.connect.CONNECT_TIMEOUT", "1 s")
    with pytest.raises(SpecError, match=r"dask: no scheduler with a worker answers at 'tcp://127.0.0.1:9'"):
        cluster(home, "tcp://127.0.0.1:9", 0).__enter__()
