"""The workers of a Dask cluster as a pool for tasks: those of one render (`flows/cluster/fanout.py`) or an evaluation.

A task is a function of a module, with arguments that say where its work lies in the store. A task whose worker died
goes to another worker. One that kills every worker it is given to raises `WorkersDiedError`; the other tasks go on.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from flows.batch.runner import POLL_SECONDS
from flows.cluster.connect import cluster, uses_workers, worker_count
from flows.rendering.files import write_whole
from stages.runner import Interrupted

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from distributed import Client

    from flows.home import Home

TRIES = 3  # workers that may die of one task


class WorkersDiedError(RuntimeError):
    """A task whose worker died, `TRIES` times in a row."""


@contextmanager
def open_pool(
    home: Home, stop: threading.Event, address: str | None, workers: int | None
) -> Iterator[WorkerPool | None]:
    """The workers of a scheduler, or `workers` processes of this machine; None where neither is asked for.

    Raises `SpecError` where there are none, or both are asked for.
    """
    if not uses_workers(address, workers):
        yield None
        return
    with cluster(home, address, workers or 0, deaths=TRIES - 1) as client:
        yield WorkerPool(client, stop)


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a cluster, each given one task at a time: a task that waited on a worker would be lost with it."""

    client: Client
    stop: threading.Event

    @property
    def width(self) -> int:
        """How many tasks are worked on at a time."""
        return worker_count(self.client)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a worker call a function of a module; return the future of its result."""
        return self.client.submit(function, *arguments, pure=False, resources={"GPU": 1})

    def as_completed(
        self,
        function: Callable[..., Any],
        tasks: Iterable[tuple[Any, ...]],
        stop_file: Path | None = None,
        ahead: float = math.inf,
    ) -> Iterator[tuple[int, Any]]:
        """Number (from 0) and future of each task as it ends. Raises `Interrupted` when asked to stop.

        With `stop_file`, tasks are long and watch that file: it tells them to stop, and they are waited for. No task
        begins that is `ahead` or more after the first one that has not ended.
        """
        waiting, ended, running = iter(tasks), SimpleQueue[Any](), dict[Any, int]()
        width, number = self.width, 0
        try:
            while True:
                while (
                    not self.stop.is_set()
                    and len(running) < width
                    and number - min(running.values(), default=number) < ahead
                ):
                    if (task := next(waiting, None)) is None:
                        break
                    future = self.submit(function, *task)
                    running[future] = number
                    number += 1
                    future.add_done_callback(ended.put)
                if self.stop.is_set() and (stop_file is None or not running):
                    raise Interrupted(None, None)
                if not running:
                    return
                if self.stop.is_set() and stop_file is not None:
                    write_whole(b"", stop_file)
                with suppress(Empty):
                    future = ended.get(timeout=POLL_SECONDS)
                    yield running.pop(future), future
        finally:
            for future in running:
                future.cancel()

    def in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], ahead: float = math.inf
    ) -> Iterator[Any]:
        """The result of each task, in the order of the tasks; `ahead` bounds how many wait for one before them."""
        ready, next_number = dict[int, Any](), 0
        for number, future in self.as_completed(function, tasks, ahead=ahead):
            ready[number] = result_of(future)
            while next_number in ready:
                yield ready.pop(next_number)
                next_number += 1


def result_of(future: Any) -> Any:
    """The result of a task. Raises what the task raised, or `WorkersDiedError` where it killed its workers."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        raise WorkersDiedError("every process that was given it died while it ran") from None
    except BaseException as error:
        if future.cancelled():
            raise RuntimeError("the Dask scheduler is gone") from error
        raise
