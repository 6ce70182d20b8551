"""A night over the workers of a Dask cluster: one job a worker at a time, the model loaded once in each.

Every worker does with its job what a night alone does (`flows/batch.py`): claim the run, try again, set aside, heed
pause and window. So a worker that dies has its job taken up by another from its last checkpoint, and a job that kills
its workers is set aside by the record of its attempts. Jobs are handed out in a window as wide as the cluster: what is
queued on a worker would die with it.
"""

from __future__ import annotations

import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from flows.batch import POLL, Night, Window, aside, set_aside
from flows.jobs import Ordered
from flows.progress import Terminal
from flows.session import Session, prepare
from stages.spec import RunOptions, SpecError, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from distributed import Client

    from flows.batch import State
    from flows.session import Home

DEATHS = 100  # of workers that Dask itself forgives a job; its attempts are counted in the home
SETTINGS = {"distributed.scheduler.allowed-failures": DEATHS, "distributed.scheduler.worker-ttl": "60 s"}
PATIENCE = "60 s"  # for a scheduler or its first worker


@contextmanager
def cluster(home: Home, address: str | None, workers: int) -> Iterator[Client]:
    """Connect to a scheduler, or start `workers` processes here, one a GPU where there are any.

    Raises `SpecError` for an address where none answers, or more workers than GPUs.
    """
    import dask
    from distributed import Client

    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS | {"temporary-directory": str(home.root / "cache" / "dask")}))
        where = address if address is not None else stack.enter_context(_local(workers))
        try:
            client = stack.enter_context(Client(where, timeout=PATIENCE, set_as_default=False))  # type: ignore[no-untyped-call]
            client.wait_for_workers(max(workers, 1), timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise SpecError(f"dask: no scheduler with a worker answers at {address!r}: {error or PATIENCE}") from None
        yield client


def check_fleet(address: str | None, workers: int | None) -> bool:
    """Whether a night is to be worked through by a fleet. Raises `SpecError` for what cannot be."""
    if address is not None and workers is not None:
        raise SpecError("dask: an address has workers of its own; leave out workers")
    if workers is not None and not 1 <= workers <= 1024:
        raise SpecError(f"workers: {workers} is not a number from 1 to 1024")
    return address is not None or workers is not None


def _local(workers: int) -> Any:
    """Processes of this machine, each with a GPU of its own by `CUDA_VISIBLE_DEVICES`; a dead one is started again."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count()
    if gpus and workers > gpus:
        raise SpecError(f"workers: {workers} is more than the {gpus} GPUs of this machine")

    def options(number: int) -> dict[str, Any]:
        pinned = {"env": {"CUDA_VISIBLE_DEVICES": str(number)}} if gpus else {}
        return {"nthreads": 1, "resources": {"GPU": 1}, "name": f"worker-{number}", "memory_limit": 0, **pinned}

    return SpecCluster(  # type: ignore[no-untyped-call]
        workers={f"worker-{n}": {"cls": Nanny, "options": options(n)} for n in range(workers)},
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "port": 0}},
        silence_logs="error",
    )


@dataclass
class Fleet:
    """Works through jobs over a cluster's workers; the fields are those of a `Night`."""

    home: Home
    options: RunOptions
    client: Client
    stop: threading.Event = field(default_factory=threading.Event)
    out: Path | None = None
    window: Window = field(default_factory=Window)
    again: bool = False
    wrap: Callable[[Ordered, Callable[[], State]], State] = lambda order, work: work()
    is_paused: Callable[[], bool] | None = None
    states: dict[str, State] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Jobs at a time: the workers that have a GPU, or are one machine's CPU."""
        return max(sum(1 for w in self.client.scheduler_info(n_workers=-1)["workers"].values() if _has(w)), 1)

    def run(self, orders: Iterable[Ordered]) -> dict[str, State]:
        """Work until every job is done or set aside, the window ends, or `stop` is set; return each run's state."""
        waiting: SimpleQueue[Ordered] = SimpleQueue()
        self.states = {}
        for order in orders:
            if self.again:
                aside(self.home, order.job.run).unlink(missing_ok=True)
            if order.job.run not in self.states:
                waiting.put(order)
            self.states[order.job.run] = "left"
        sign = self.home.root / "cache" / f"stop-{os.getpid()}-{id(self)}"
        finished = threading.Event()
        told = threading.Thread(target=self._tell, args=(sign, finished), name="stop", daemon=True)
        told.start()
        try:
            width = self.width
            with ThreadPoolExecutor(width) as hands:
                context = [contextvars.copy_context() for _ in range(width)]
                for hand in [hands.submit(each.run, self._hand, waiting, sign) for each in context]:
                    hand.result()
        finally:
            finished.set()
            told.join()
            sign.unlink(missing_ok=True)
        return self.states

    def _hand(self, waiting: SimpleQueue[Ordered], sign: Path) -> None:
        """One worker's share: the next job, as soon as the last one is settled."""
        while not self.stop.is_set() and not self.window.is_over:
            try:
                order = waiting.get_nowait()
            except Empty:
                return
            self.states[order.job.run] = self.wrap(order, partial(self._elsewhere, order, sign))

    def _elsewhere(self, order: Ordered, sign: Path) -> State:
        wanted = {"name": order.name, "where": order.where, "spec": order.job.spec.model_dump(mode="json")}
        future = self.client.submit(
            settle,
            self.home,
            self.options.model_dump(),
            self.window,
            self.out,
            wanted,
            sign,
            pure=False,
            resources={"GPU": 1},
            key=f"{order.job.run}-{os.urandom(4).hex()}",
        )
        try:
            state: State = future.result()
        except Exception as error:  # the cluster's, or one that a night does not know: this job's alone
            set_aside(self.home, order, error)
            return "set aside"
        return state

    def _tell(self, sign: Path, finished: threading.Event) -> None:
        """Pass a stop on to the workers, and a pause that only this process knows of, by files in the home."""
        paused = self.home.root / "paused"
        ours = False
        while not finished.wait(POLL):
            if self.stop.is_set():
                sign.parent.mkdir(parents=True, exist_ok=True)
                sign.touch()
            if self.is_paused is not None:
                if self.is_paused() and not paused.exists():
                    paused.touch()
                    ours = True
                elif ours and not self.is_paused():
                    paused.unlink(missing_ok=True)
                    ours = False
        if ours:
            paused.unlink(missing_ok=True)


def _has(worker: dict[str, Any]) -> bool:
    return bool(worker.get("resources", {}).get("GPU"))


_sessions: dict[tuple[Path, str], Session] = {}  # of this worker process: one, with its model


def settle(
    home: Home, options: dict[str, Any], window: Window, out: Path | None, wanted: dict[str, Any], sign: Path
) -> State:
    """Do one job in this worker process, as a night of one job; heed the file `sign`, which says stop."""
    how = RunOptions.model_validate(options)
    session = _sessions.setdefault((home.root, how.model_dump_json()), Session(home, how, Terminal(quiet=True)))
    night = Night(home, how, Terminal(quiet=True), out=out, window=window, session=session)
    order = Ordered(wanted["name"], 0, wanted["where"], prepare(make_spec(wanted["spec"]), home))
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if sign.exists():
                night.stop.set()

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        return night.run([order])[order.job.run]
    finally:
        over.set()
