"""A batch of renders in one process: one job after another; a job that fails is set aside, and the others go on.

The home alone has the state of a batch: a job is done when its run is, set aside while `set-aside/RUN.json` exists, and
left otherwise. So jobs that are given again, to this process, a later one or several at a time, are taken up where they
were. A kernel lock on each run keeps two processes from working on the same one.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from flows.batch.blame import deaths, last_those_that_died, memory_is_taken
from flows.batch.set_aside import set_aside_path, take_back, write_set_aside
from flows.batch.window import Window
from flows.rendering.room import full_folder, wait_for_room
from flows.rendering.session import Session
from flows.rendering.stop import StopEvent
from stages.errors import SpecError, StageError
from stages.runner import Interrupted
from storage import LeaseTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.observer import Observer
    from stages.spec import RunOptions

log = logging.getLogger(__name__)

TRIES = 3
BACKOFF_SECONDS = (5.0, 60.0)  # before the second and the third try
POLL_SECONDS = 0.5  # between two looks at stop, pause, window and the runs of other processes
MEMORY_SECONDS = 10.0  # between two looks at memory that other programs hold
State = Literal["done", "set aside", "left"]


@dataclass
class Batch:
    """Works through jobs in one process.

    `stop` ends it between two steps, with a checkpoint. While `is_paused` returns true nothing runs and the device is
    free; without `is_paused`, the batch is paused while the home has a file `paused`. `wrap` is given each job and the
    work on it, and calls that: inside a Prefect task, for example.
    """

    home: Home
    options: RunOptions
    observer: Observer
    stop: StopEvent = field(default_factory=StopEvent)
    out: Path | None = None
    window: Window = field(default_factory=Window)
    again: bool = False  # also try the jobs that were set aside
    wrap: Callable[[QueuedJob, Callable[[], State]], State] = lambda queued, work: work()
    is_paused: Callable[[], bool] | None = None
    session: Session | None = None  # with a model that is loaded already; None: a new one
    states: dict[str, State] = field(default_factory=dict)  # by run
    _halt: StopEvent = field(default_factory=StopEvent)  # set: the job that runs stops after its step
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Iterable[QueuedJob]) -> dict[str, State]:
        """Work until every job is done or set aside, the window ends, or `stop` is set; return each run's state."""
        session = self.session or Session(self.home, self.options, self.observer)
        session.stop = self._halt
        waiting = {queued.job.run: queued for queued in last_those_that_died(jobs, self.home)}
        self.states = dict.fromkeys(waiting, "left")
        if self.again:
            for run in waiting:
                take_back(self.home, run)
        self._ended.clear()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        try:
            while waiting and not self._is_over():
                try:
                    self._round(session, waiting)
                except Interrupted:
                    self._wait_out_pause(session)
        finally:
            self._ended.set()
        return self.states

    def _round(self, session: Session, waiting: dict[str, QueuedJob]) -> None:
        """Work once on every waiting job that no other process works on. Raises `Interrupted` when halted in a job."""
        took_one = False
        for run, queued in list(waiting.items()):
            if self._is_over() or self._halt.is_set():
                break
            try:
                with self.home.runs.claim(run):
                    took_one = True
                    self.states[run] = self.wrap(queued, partial(self._work_on, session, queued))
            except LeaseTimeoutError:
                continue
            except Exception as error:
                if not self._waited_out(session, queued.job, error):
                    raise
            if self.states[run] != "left":
                del waiting[run]
        if self._halt.is_set():
            self._wait_out_pause(session)
        elif not took_one:
            self._halt.wait(POLL_SECONDS)

    def _is_over(self) -> bool:
        return self.stop.is_set() or self.window.is_over

    def _paused(self) -> bool:
        return (self.home.root / "paused").exists() if self.is_paused is None else self.is_paused()

    def _wait_out_pause(self, session: Session) -> None:
        """After a halt: free the device and wait while the batch is paused."""
        if not self._is_over():
            session.release()
        while not self._is_over() and self._paused():
            self.stop.wait(POLL_SECONDS)
        if not self._is_over():
            self._halt.clear()

    def _watch(self) -> None:
        """Halt the job that runs when the batch is to stop, is paused, or reaches the end of a window that yields."""
        while not self._ended.is_set():
            yields = self.window.at_end == "yield" and self.window.is_over
            if self.stop.is_set():
                self._halt.ask(self.stop.why)
            elif yields or self._paused():
                self._halt.ask("the window ended" if yields else "paused")
            self._ended.wait(POLL_SECONDS)

    def _work_on(self, session: Session, queued: QueuedJob) -> State:
        """Render one job, with retries, or set it aside. Raises `Interrupted` when halted."""
        if set_aside_path(self.home, queued.job.run).exists():
            return "set aside"
        held = [death for death in deaths(self.home, queued.job) if death.counted]
        if len(held) >= TRIES:
            write_set_aside(
                self.home, queued, RuntimeError(f"its process died {len(held)} times at {held[-1].reached}")
            )
            return "set aside"
        for number in range(len(held), TRIES):
            try:
                session.render(queued.job, self.out)
                return "done"
            except Exception as error:
                if self._waited_out(session, queued.job, error):
                    return "left"
                if isinstance(error, SpecError | StageError) or number == TRIES - 1:
                    write_set_aside(self.home, queued, error)
                    return "set aside"
                if self._halt.wait(BACKOFF_SECONDS[min(number, len(BACKOFF_SECONDS) - 1)]):
                    return "left"
        raise AssertionError("the last try returns")

    def _waited_out(self, session: Session, job: Job, error: Exception) -> bool:
        """Whether something outside of the job explains its error; then this waits until it is better, or a halt.

        A full disk and memory that other programs hold count as no try: the job goes on from its checkpoint.
        """
        folder = full_folder(error, self.home.root, *([self.out] if self.out else []))
        if folder is not None:
            log.warning("%s: waiting for room on the disk of %s: %s", job.run, folder, error)
            wait_for_room(folder, self._halt)
            return True
        if memory_is_taken(error, job.plan, session.options):
            log.warning("%s: waiting for memory that other programs hold: %s", job.run, error)
            session.release()
            self._halt.wait(MEMORY_SECONDS)
            return True
        return False
