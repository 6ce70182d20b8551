"""A night of renders: one job after another, what fails set aside with its reason, and the night goes on.

The state of a night is in the home alone: a job is done when its run is, set aside when `set-aside/RUN.json` says
why, and left otherwise. So the same jobs given again, tonight or tomorrow, by one process or by several on one
home, are taken up where they were; a kernel lock a run keeps two processes from working on the same one.
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
from stages.runner import Interrupted
from stages.spec import SpecError
from stages.stage import StageError
from storage import LeaseTimeoutError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flows.batch.jobs_file import Ordered
    from flows.home import Home
    from stages.observer import Observer
    from stages.spec import RunOptions

log = logging.getLogger(__name__)

TRIES = 3
BACKOFF = (5.0, 60.0)  # seconds before the second and the third try
POLL = 0.5  # seconds between looks at what another process holds, and at the room on the disk
SPARE_BYTES = 256 * 2**20
State = Literal["done", "set aside", "left"]


@dataclass
class Night:
    """Works through jobs in one process.

    `stop` ends it between two steps, with a checkpoint. While `is_paused` says so nothing runs and the device is
    free; without one, a file `paused` in the home does. `wrap` is given each job and the work on it, and calls that:
    inside a task, for one.
    """

    home: Home
    options: RunOptions
    observer: Observer
    stop: threading.Event = field(default_factory=threading.Event)
    out: Path | None = None
    window: Window = field(default_factory=Window)
    again: bool = False  # take up what was set aside
    wrap: Callable[[Ordered, Callable[[], State]], State] = lambda order, work: work()
    is_paused: Callable[[], bool] | None = None
    session: Session | None = None  # with a model that is loaded already
    states: dict[str, State] = field(default_factory=dict)  # by run
    _halt: threading.Event = field(default_factory=threading.Event)  # what runs, yields
    _settled: threading.Event = field(default_factory=threading.Event)

    def run(self, orders: Iterable[Ordered]) -> dict[str, State]:
        """Work until every job is done or set aside, the window ends, or `stop` is set; return each run's state."""
        session = self.session or Session(self.home, self.options, self.observer)
        session.stop = self._halt
        waiting = {order.job.run: order for order in orders}
        self.states = dict.fromkeys(waiting, "left")
        if self.again:
            for run in waiting:
                take_back(self.home, run)
        self._settled.clear()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        try:
            while waiting and not self._is_over():
                try:
                    self._round(session, waiting)
                except Interrupted:
                    self._rest(session)
        finally:
            self._settled.set()
        return self.states

    def _round(self, session: Session, waiting: dict[str, Ordered]) -> None:
        """Take every waiting job once that no other process works on. Raises `Interrupted`."""
        took_one = False
        for run, order in list(waiting.items()):
            if self._is_over() or self._halt.is_set():
                break
            try:
                with self.home.runs.claim(run):
                    took_one = True
                    self.states[run] = self.wrap(order, partial(self._settle, session, order))
            except LeaseTimeoutError:
                continue
            if self.states[run] != "left":
                del waiting[run]
        if self._halt.is_set():
            self._rest(session)
        elif not took_one:
            self._halt.wait(POLL)

    def _is_over(self) -> bool:
        return self.stop.is_set() or self.window.is_over

    def _paused(self) -> bool:
        return (self.home.root / "paused").exists() if self.is_paused is None else self.is_paused()

    def _rest(self, session: Session) -> None:
        """Halted: while it is only a pause, wait with the device free."""
        if not self._is_over():
            session.release()
        while not self._is_over() and self._paused():
            self.stop.wait(POLL)
        if not self._is_over():
            self._halt.clear()

    def _watch(self) -> None:
        """Halt what runs when the night is to stop, its window ends and it yields, or it is paused."""
        while not self._settled.is_set():
            yields = self.window.at_end == "yield" and self.window.is_over
            if self.stop.is_set() or yields or self._paused():
                self._halt.set()
            self._settled.wait(POLL)

    def _settle(self, session: Session, order: Ordered) -> State:
        """Render one job, trying again what may pass, and set aside what does not. Raises `Interrupted`."""
        if set_aside_path(self.home, order.job.run).exists():
            return "set aside"
        for number in range(crashes(self.home, order.job), TRIES):
            try:
                session.render(order.job, self.out)
                return "done"
            except StoreFullError as error:
                self._wait_for_room(error)
                return "left"
            except Exception as error:
                if isinstance(error, SpecError | StageError) or number == TRIES - 1:
                    write_set_aside(self.home, order, error)
                    return "set aside"
                if self._halt.wait(BACKOFF[min(number, len(BACKOFF) - 1)]):
                    return "left"
        write_set_aside(self.home, order, RuntimeError(f"its process died {TRIES} times while it ran"))
        return "set aside"

    def _wait_for_room(self, error: StoreFullError) -> None:
        """A full disk is nobody's fault: wait until there is room, then go on from the checkpoint."""
        log.warning("%s Waiting for %d MiB of room.", error, SPARE_BYTES // 2**20)
        while shutil.disk_usage(self.home.root).free < SPARE_BYTES and not self._halt.wait(POLL):
            pass
        self._halt.wait(POLL)
