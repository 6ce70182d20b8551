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
from flows.batch.runner import aside
from flows.cli.terminal import Terminal
from flows.cluster.batch import Fleet, check_fleet, cluster
from flows.home import Home
from flows.rendering.session import Session, prepare
from stages.errors import SpecError
from stages.spec import RunOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from flows.batch.jobs_file import Ordered
    from flows.batch.runner import State
    from flows.rendering.session import Job, Result

OPTIONS = RunOptions(threads=1, checkpoint_every=0)

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[Client]:
    with cluster(home, None, 2) as client:
        yield client


def orders(home: Home, *prompts: str, steps: int = 4) -> tuple[Ordered, ...]:
    path = home.root / f"jobs-{abs(hash(prompts))}.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    return read_jobs(path, home, {"size": "192x128", "steps": steps}).jobs


def alone(home: Home, order: Ordered) -> str:
    quiet = Home(home.root / "quiet")
    session = Session(quiet, RunOptions(threads=1), Terminal(quiet=True))
    return session.render(prepare(order.job.spec, quiet)).pixels_sha256


def stored(home: Home, order: Ordered) -> Result:
    result = Session(home, OPTIONS, Terminal(quiet=True)).render(order.job)
    assert all(outcome.reused for outcome in result.outcomes)
    return result


def poison(dask_worker: Any) -> None:
    """Let a job of these words kill the worker that renders it."""
    render = Session.render

    def deadly(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        if "poison" in job.spec.prompt:
            from flows.rendering.session import _open

            _open(job, self.home.runs)  # as a render begins: the attempt is written down
            os.kill(os.getpid(), signal.SIGKILL)
        return render(self, job, out, overwrite)

    Session.render = deadly  # type: ignore[method-assign]


def test_the_same_bytes_as_alone_over_two_workers(home: Home, client: Client) -> None:
    jobs = orders(home, "a red disc on sand", "a green ring on snow", "a blue star on sand")
    at_once: list[int] = []
    working: list[str] = []

    def wrap(order: Ordered, work: Any) -> State:
        working.append(order.name)
        at_once.append(len(working))
        state: State = work()
        working.remove(order.name)
        return state

    fleet = Fleet(home, OPTIONS, client, wrap=wrap)
    assert fleet.width == 2
    assert set(fleet.run(jobs).values()) == {"done"}
    assert max(at_once) == 2
    for order in jobs:
        assert stored(home, order).pixels_sha256 == alone(home, order)


def test_a_killed_workers_job_goes_on_elsewhere(home: Home, client: Client) -> None:
    (order,) = orders(home, "a purple square on snow", steps=60)
    states: list[dict[str, State]] = []
    thread = threading.Thread(target=lambda: states.append(Fleet(home, OPTIONS, client).run([order])))
    thread.start()
    patience = time.monotonic() + 120
    while not list(home.root.glob("store/steps/*/step-*.json")):
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.kill(home.runs.load(order.job.run).attempts[-1].process, signal.SIGKILL)
    thread.join(180)
    assert states == [{order.job.run: "done"}]
    attempts = home.runs.load(order.job.run).attempts
    assert [attempt.state for attempt in attempts] == ["running", "done"]
    resumed = [home.store.find(call.key) for call in home.runs.load(order.job.run).plan]
    assert any(manifest and manifest.resumed_at for manifest in resumed)
    assert stored(home, order).pixels_sha256 == alone(home, order)


def test_poison_is_set_aside_and_takes_no_neighbour_with_it(home: Home, client: Client) -> None:
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    from distributed import WorkerPlugin

    class Poison(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            poison(worker)

    client.register_plugin(Poison())
    jobs = orders(home, "a poison disc", "a red ring on snow", "a yellow ring on snow", "a green disc on snow")
    states = Fleet(home, OPTIONS, client).run(jobs)
    assert [states[order.job.run] for order in jobs] == ["set aside", "done", "done", "done"]
    assert "its process died 3 times" in aside(home, jobs[0].job.run).read_text()
    for order in jobs[1:]:
        assert stored(home, order).pixels_sha256 == alone(home, order)


def test_a_stop_reaches_the_workers(home: Home, client: Client) -> None:
    (order,) = orders(home, "a long purple disc", steps=400)
    fleet = Fleet(home, OPTIONS, client)
    states: list[dict[str, State]] = []
    thread = threading.Thread(target=lambda: states.append(fleet.run([order])))
    thread.start()
    patience = time.monotonic() + 120
    while not (home.runs.folder(order.job.run) / "run.json").exists():
        assert time.monotonic() < patience
        time.sleep(0.05)
    fleet.stop.set()
    thread.join(60)
    assert states == [{order.job.run: "left"}]
    assert home.runs.load(order.job.run).state == "interrupted"


def test_what_cannot_be_is_refused() -> None:
    assert (check_fleet(None, None), check_fleet(None, 2), check_fleet("tcp://x:1", None)) == (False, True, True)
    for address, workers in ((None, 0), ("tcp://x:1", 2)):
        with pytest.raises(SpecError):
            check_fleet(address, workers)


def test_an_address_where_nobody_answers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.cluster.batch.PATIENCE", "1 s")
    with pytest.raises(SpecError, match=r"dask: no scheduler with a worker answers at 'tcp://127.0.0.1:9'"):
        cluster(home, "tcp://127.0.0.1:9", 0).__enter__()
