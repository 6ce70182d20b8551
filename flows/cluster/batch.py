"""A batch over the workers of a Dask cluster: one job at a time on each worker, with the model loaded once in each.

A worker does with its job what a batch in one process does (`flows/batch/runner.py`): it claims the run, tries again,
sets the job aside, and obeys the pause and the window. So when a worker dies, another one takes its job up from the
last checkpoint; and a job that kills its workers is set aside, because its attempts are recorded. No more jobs are
handed out than there are workers: a job that waited on a worker would be lost with it.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from flows.batch.runner import POLL_SECONDS, TRIES
from flows.batch.set_aside import take_back, write_set_aside
from flows.batch.window import Window
from flows.cluster.connect import worker_count
from flows.cluster.worker import run_job
from flows.rendering.files import write_whole
from flows.rendering.stop import StopEvent
from stages.errors import SpecError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from distributed import Client

    from flows.batch.jobs_file import QueuedJob
    from flows.batch.runner import State
    from flows.home import Home
    from stages.spec import RunOptions

log = logging.getLogger(__name__)


@dataclass
class ClusterBatch:
    """Works through jobs over the workers of a cluster; the fields are those of a `Batch`."""

    home: Home
    options: RunOptions
    client: Client
    stop: StopEvent = field(default_factory=StopEvent)
    out: Path | None = None
    window: Window = field(default_factory=Window)
    again: bool = False
    wrap: Callable[[QueuedJob, Callable[[], State]], State] = lambda queued, work: work()
    is_paused: Callable[[], bool] | None = None
    states: dict[str, State] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """How many jobs are worked on at a time."""
        return worker_count(self.client)

    def run(self, jobs: Iterable[QueuedJob]) -> dict[str, State]:
        """Work until every job is done or set aside, the window ends, or `stop` is set; return each run's state."""
        waiting: SimpleQueue[QueuedJob] = SimpleQueue()
        tries: Counter[str] = Counter()
        self.states = {}
        for queued in jobs:
            if self.again:
                take_back(self.home, queued.job.run)
            if queued.job.run not in self.states:
                waiting.put(queued)
            self.states[queued.job.run] = "left"
        stop_file = self.home.root / "cache" / f"stop-{os.getpid()}-{id(self)}"
        finished = threading.Event()
        watcher = threading.Thread(target=self._pass_on, args=(stop_file, finished), name="stop", daemon=True)
        watcher.start()
        try:
            width = self.width
            with ThreadPoolExecutor(width) as executor:
                contexts = [contextvars.copy_context() for _ in range(width)]
                for future in [
                    executor.submit(each.run, self._work_off, waiting, stop_file, tries) for each in contexts
                ]:
                    future.result()
        finally:
            finished.set()
            watcher.join()
            stop_file.unlink(missing_ok=True)
        return self.states

    def _work_off(self, waiting: SimpleQueue[QueuedJob], stop_file: Path, tries: Counter[str]) -> None:
        """Keep one worker busy: give it the next job as soon as its last one has ended."""
        while not self.stop.is_set() and not self.window.is_over:
            try:
                queued = waiting.get_nowait()
            except Empty:
                return
            run = queued.job.run
            self.states[run] = self.wrap(queued, partial(self._on_worker, queued, stop_file))
            tries[run] += 1
            if self.states[run] == "left" and tries[run] < TRIES:
                waiting.put(queued)

    def _on_worker(self, queued: QueuedJob, stop_file: Path) -> State:
        """Have a worker do a job. What the worker cannot tell itself is set aside only where the spec is wrong there.

        Where the cluster lost its workers the job is given out again, `TRIES` times, and is left then: what killed
        them, the job's attempts tell (`flows/batch/blame.py`).
        """
        fields = {"name": queued.name, "where": queued.where, "spec": queued.job.spec.model_dump(mode="json")}
        future = self.client.submit(
            run_job,
            self.home,
            self.options.model_dump(),
            self.window,
            self.out,
            fields,
            stop_file,
            pure=False,
            resources={"GPU": 1},
            key=f"{queued.job.run}-{os.urandom(4).hex()}",
        )
        try:
            state: State = future.result()
            return state
        except (SpecError, StageError) as error:
            write_set_aside(self.home, queued, error)
            return "set aside"
        except Exception as error:
            log.warning("%s: the cluster gave no result: %s: %s", queued.job.run, type(error).__name__, error)
            return "left"

    def _pass_on(self, stop_file: Path, finished: threading.Event) -> None:
        """Tell the workers of a stop, and of a pause that only this process knows of, by files in the home."""
        pause_file = self.home.root / "paused"
        is_ours = False
        while not finished.wait(POLL_SECONDS):
            if self.stop.is_set():
                write_whole((self.stop.why or "").encode(), stop_file)
            if self.is_paused is not None:
                if self.is_paused() and not pause_file.exists():
                    pause_file.touch()
                    is_ours = True
                elif is_ours and not self.is_paused():
                    pause_file.unlink(missing_ok=True)
                    is_ours = False
        if is_ours:
            pause_file.unlink(missing_ok=True)
