"""The workers of a Dask cluster, for tasks of whoever has them: a render (`flows/cluster/fanout.py`), an evaluation.

A task is a function of a module and what it needs to find its work in the store. One whose worker died is given to
another; one that kills every worker it is given to is told as such, and takes none of its neighbours with it.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from flows.batch.runner import POLL
from flows.cluster.batch import check_fleet, cluster, width_of
from flows.rendering.session import place
from stages.runner import Interrupted

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from distributed import Client

    from flows.home import Home

TRIES = 3  # workers that may die of one task


class WorkersDiedError(RuntimeError):
    """A task whose worker died, and the next one, and the next."""


@contextmanager
def crew_of(home: Home, stop: threading.Event, address: str | None, workers: int | None) -> Iterator[Crew | None]:
    """The workers of a scheduler, or `workers` processes here; None where neither is asked for. Raises `SpecError`."""
    if not check_fleet(address, workers):
        yield None
        return
    with cluster(home, address, workers or 0, deaths=TRIES - 1) as client:
        yield Crew(client, stop)


@dataclass(frozen=True)
class Crew:
    """The workers of a cluster, given one task each at a time: what is queued on a worker would die with it."""

    client: Client
    stop: threading.Event

    @property
    def width(self) -> int:
        """Tasks at a time."""
        return width_of(self.client)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a worker call a function of a module."""
        return self.client.submit(function, *arguments, pure=False, resources={"GPU": 1})

    def each(
        self,
        function: Callable[..., Any],
        tasks: Iterable[tuple[Any, ...]],
        sign: Path | None = None,
        ahead: float = math.inf,
    ) -> Iterator[tuple[int, Any]]:
        """Number and future of each task as it ends. Raises `Interrupted` when asked to stop.

        With `sign`, the tasks are long and heed that file: they are told by it to stop, and waited for. No task begins
        that is `ahead` or more after the first that has not ended.
        """
        waiting, ended, flying = iter(tasks), SimpleQueue[Any](), dict[Any, int]()
        width, due = self.width, 0
        try:
            while True:
                while (
                    len(flying) < width and due - min(flying.values(), default=due) < ahead and not self.stop.is_set()
                ):
                    if (task := next(waiting, None)) is None:
                        break
                    future = self.submit(function, *task)
                    flying[future] = due
                    due += 1
                    future.add_done_callback(ended.put)
                if self.stop.is_set() and (sign is None or not flying):
                    raise Interrupted(None, None)
                if not flying:
                    return
                if self.stop.is_set() and sign is not None:
                    place(b"", sign)
                with suppress(Empty):
                    future = ended.get(timeout=POLL)
                    yield flying.pop(future), future
        finally:
            for future in flying:
                future.cancel()

    def in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], ahead: float = math.inf
    ) -> Iterator[Any]:
        """What each task gave, in their order; `ahead` bounds how many wait for one before them."""
        ready, due = dict[int, Any](), 0
        for number, future in self.each(function, tasks, ahead=ahead):
            ready[number] = result_of(future)
            while due in ready:
                yield ready.pop(due)
                due += 1


def result_of(future: Any) -> Any:
    """What a task gave, or raise what it raised; `WorkersDiedError` where it killed them."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        raise WorkersDiedError("every process that was given it died while it ran") from None
    except BaseException as error:
        if future.cancelled():
            raise RuntimeError("the Dask scheduler is gone") from error
        raise
