"""A night over the workers of a Dask cluster: one job a worker at a time, the model loaded once in each.

Every worker does with its job what a night alone does (`flows/batch/runner.py`): claim the run, try again, set aside,
heed pause and window. So a worker that dies has its job taken up by another from its last checkpoint, and a job that
kills its workers is set aside by the record of its attempts. Jobs are handed out in a window as wide as the cluster:
what is queued on a worker would die with it.
"""

from __future__ import annotations

import contextvars
import logging
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

from flows.batch.jobs_file import Ordered
from flows.batch.runner import POLL, Night, Window, aside, set_aside
from flows.cli.terminal import Terminal
from flows.rendering.session import Session, prepare
from stages.errors import SpecError
from stages.planner.budget import keep_freed
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from distributed import Client

    from flows.batch.runner import State
    from flows.home import Home

DEATHS = 100  # of workers that Dask itself forgives a job; its attempts are counted in the home
SETTINGS = {"distributed.scheduler.worker-ttl": "60 s"}
PATIENCE = "60 s"  # for a scheduler or its first worker
HERE = "127.0.0.1"  # processes of this machine talk to each other alone
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"  # a terminal's Ctrl-C is passed on by a stop


@contextmanager
def cluster(home: Home, address: str | None, workers: int, deaths: int = DEATHS) -> Iterator[Client]:
    """Connect to a scheduler, or start `workers` processes here, one a GPU where there are any.

    Work whose worker died is given to another, `deaths` times; a scheduler that was there decides that itself. Raises
    `SpecError` for an address where none answers, or more workers than GPUs.
    """
    import dask
    from distributed import Client

    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # the workers'
    logging.getLogger("distributed").setLevel(logging.ERROR)  # ours, where Dask was imported before
    settings = {"distributed.scheduler.allowed-failures": deaths, "temporary-directory": str(home.root / "cache/dask")}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS | settings))
        where = address if address is not None else stack.enter_context(_local(workers))
        try:
            client = stack.enter_context(Client(where, timeout=PATIENCE, set_as_default=False))  # type: ignore[no-untyped-call]
            client.wait_for_workers(max(workers, 1), timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise SpecError(f"dask: no scheduler with a worker answers at {address!r}: {error or PATIENCE}") from None
        if not _able(client):
            raise SpecError(f"dask: no worker at {address!r} takes tasks; start them with --resources GPU=1")
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
        plain = {"nthreads": 1, "resources": {"GPU": 1}, "memory_limit": 0, "preload": [DEAF], "host": HERE}
        return {"name": f"worker-{number}", **plain, **pinned}

    return SpecCluster(  # type: ignore[no-untyped-call]
        workers={f"worker-{n}": {"cls": Nanny, "options": options(n)} for n in range(workers)},
        scheduler={
            "cls": Scheduler,
            "options": {"dashboard": False, "dashboard_address": f"{HERE}:0", "port": 0, "host": HERE},
        },
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
        """Jobs at a time."""
        return width_of(self.client)

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


def width_of(client: Client) -> int:
    """The workers that have a GPU, or are one machine's CPU; at least 1, for one may be starting again."""
    return max(_able(client), 1)


def _able(client: Client) -> int:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(bool(worker.get("resources", {}).get("GPU")) for worker in workers)


_sessions: dict[tuple[Home, str], Session] = {}  # of this worker process: one, with its model


def session_of(home: Home, options: dict[str, Any]) -> Session:
    """This worker process's session, with the model of its last task."""
    how = RunOptions.model_validate(options)
    key = (home, how.model_dump_json())
    if key not in _sessions:
        _sessions.clear()
        keep_freed()
        _sessions[key] = Session(home, how, Terminal(quiet=True))
    return _sessions[key]


@contextmanager
def heeding(sign: Path, stop: threading.Event) -> Iterator[None]:
    """Set `stop` once there is the file `sign`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if sign.exists():
                stop.set()

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def settle(
    home: Home, options: dict[str, Any], window: Window, out: Path | None, wanted: dict[str, Any], sign: Path
) -> State:
    """Do one job in this worker process, as a night of one job; heed the file `sign`, which says stop."""
    session = session_of(home, options)
    night = Night(home, session.options, Terminal(quiet=True), out=out, window=window, session=session)
    order = Ordered(wanted["name"], 0, wanted["where"], prepare(make_spec(wanted["spec"]), home))
    with heeding(sign, night.stop):
        return night.run([order])[order.job.run]
