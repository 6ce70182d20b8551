"""A batch of renders in one process: one job after another; a job that fails is set aside, and the others go on.

The home alone has the state of a batch: a job is done when its run is, set aside while `set-aside/RUN.json` exists, and
left otherwise. So jobs that are given again, to this process, a later one or several at a time, are taken up where they
were. A kernel lock on each run keeps two processes from working on the same one.
"""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from flows.batch.set_aside import crashes, set_aside_path, take_back, write_set_aside
from flows.batch.window import Window
from flows.rendering.session import Session
from stages.errors import SpecError, StageError
from stages.runner import Interrupted
from storage import LeaseTimeoutError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.home import Home
    from stages.observer import Observer
    from stages.spec import RunOptions

log = logging.getLogger(__name__)

TRIES = 3
BACKOFF_SECONDS = (5.0, 60.0)  # before the second and the third try
POLL_SECONDS = 0.5  # between two looks at stop, pause, window, the runs of other processes and the room on the disk
SPARE_BYTES = 256 * 2**20  # of the disk, before a job goes on after the disk was full
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
    stop: threading.Event = field(default_factory=threading.Event)
    out: Path | None = None
    window: Window = field(default_factory=Window)
    again: bool = False  # also try the jobs that were set aside
    wrap: Callable[[QueuedJob, Callable[[], State]], State] = lambda queued, work: work()
    is_paused: Callable[[], bool] | None = None
    session: Session | None = None  # with a model that is loaded already; None: a new one
    states: dict[str, State] = field(default_factory=dict)  # by run
    _halt: threading.Event = field(default_factory=threading.Event)  # set: the job that runs stops after its step
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Iterable[QueuedJob]) -> dict[str, State]:
        """Work until every job is done or set aside, the window ends, or `stop` is set; return each run's state."""
        session = self.session or Session(self.home, self.options, self.observer)
        session.stop = self._halt
        waiting = {queued.job.run: queued for queued in jobs}
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
            if self.stop.is_set() or yields or self._paused():
                self._halt.set()
            self._ended.wait(POLL_SECONDS)

    def _work_on(self, session: Session, queued: QueuedJob) -> State:
        """Render one job, with retries, or set it aside. Raises `Interrupted` when halted."""
        if set_aside_path(self.home, queued.job.run).exists():
            return "set aside"
        for number in range(crashes(self.home, queued.job), TRIES):
            try:
                session.render(queued.job, self.out)
                return "done"
            except StoreFullError as error:
                self._wait_for_room(error)
                return "left"
            except Exception as error:
                if isinstance(error, SpecError | StageError) or number == TRIES - 1:
                    write_set_aside(self.home, queued, error)
                    return "set aside"
                if self._halt.wait(BACKOFF_SECONDS[min(number, len(BACKOFF_SECONDS) - 1)]):
                    return "left"
        write_set_aside(self.home, queued, RuntimeError(f"its process died {TRIES} times while it ran"))
        return "set aside"

    def _wait_for_room(self, error: StoreFullError) -> None:
        """Wait until the disk has room again: a full disk counts as no try, and the job goes on from its checkpoint."""
        log.warning("%s Waiting for %d MiB of room.", error, SPARE_BYTES // 2**20)
        while shutil.disk_usage(self.home.root).free < SPARE_BYTES and not self._halt.wait(POLL_SECONDS):
            pass
        self._halt.wait(POLL_SECONDS)
