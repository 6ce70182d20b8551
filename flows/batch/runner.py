"""A night of renders: one job after another, what fails set aside with its reason, and the night goes on.

The state of a night is in the home alone: a job is done when its run is, set aside when `set-aside/RUN.json` says
why, and left otherwise. So the same jobs given again, tonight or tomorrow, by one process or by several on one
home, are taken up where they were; a kernel lock a run keeps two processes from working on the same one.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flows.rendering.session import Session, place
from stages.errors import SpecError, StageError
from stages.runner import Interrupted
from storage import Checkpoints, LeaseTimeoutError, RunNotFoundError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flows.batch.jobs_file import Ordered
    from flows.home import Home
    from flows.rendering.session import Job
    from stages.observer import Observer
    from stages.spec import RunOptions

log = logging.getLogger(__name__)

TRIES = 3
BACKOFF = (5.0, 60.0)  # seconds before the second and the third try
POLL = 0.5  # seconds between looks at what another process holds, and at the room on the disk
SPARE_BYTES = 256 * 2**20
State = Literal["done", "set aside", "left"]


@dataclass(frozen=True)
class Window:
    """When to stop: after `until` no job is started, and what runs then finishes, or yields with a checkpoint."""

    until: datetime | None = None
    at_end: Literal["finish", "yield"] = "finish"

    @classmethod
    def of(
        cls, until: str | None, zone: str | None = None, at_end: str = "finish", now: datetime | None = None
    ) -> Window:
        """End when a clock in `zone` (default: this machine's) next shows HH:MM. Raises `SpecError`."""
        if at_end not in ("finish", "yield"):
            raise SpecError(f"at_end: {at_end!r} is not one of finish, yield")
        try:
            today = (now or datetime.now(UTC)).astimezone(ZoneInfo(zone) if zone else None)
        except (ZoneInfoNotFoundError, OSError, ValueError):
            raise SpecError(f"zone: {zone!r} is not a known time zone, for example Europe/Vienna") from None
        if until is None:
            return cls(None, at_end)  # type: ignore[arg-type]
        try:
            clock = datetime.strptime(until, "%H:%M")
        except ValueError:
            raise SpecError(f"until: {until!r} is not HH:MM, for example 06:30") from None
        end = today.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
        end = end if end > today else end + timedelta(days=1)
        return cls(end.astimezone(UTC), at_end)  # type: ignore[arg-type]

    @property
    def is_over(self) -> bool:
        """Whether no job may be started any more."""
        return self.until is not None and datetime.now(UTC) >= self.until


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
    window: Window = Window()
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
                aside(self.home, run).unlink(missing_ok=True)
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
        if aside(self.home, order.job.run).exists():
            return "set aside"
        for number in range(_crashes(self.home, order.job), TRIES):
            try:
                session.render(order.job, self.out)
                return "done"
            except StoreFullError as error:
                self._wait_for_room(error)
                return "left"
            except Exception as error:
                if isinstance(error, SpecError | StageError) or number == TRIES - 1:
                    set_aside(self.home, order, error)
                    return "set aside"
                if self._halt.wait(BACKOFF[min(number, len(BACKOFF) - 1)]):
                    return "left"
        set_aside(self.home, order, RuntimeError(f"its process died {TRIES} times while it ran"))
        return "set aside"

    def _wait_for_room(self, error: StoreFullError) -> None:
        """A full disk is nobody's fault: wait until there is room, then go on from the checkpoint."""
        log.warning("%s Waiting for %d MiB of room.", error, SPARE_BYTES // 2**20)
        while shutil.disk_usage(self.home.root).free < SPARE_BYTES and not self._halt.wait(POLL):
            pass
        self._halt.wait(POLL)


def _crashes(home: Home, job: Job) -> int:
    """How many tries in a row ended with the death of their process: their records still say `running`."""
    try:
        attempts = home.runs.load(job.run).attempts
    except RunNotFoundError:
        return 0
    return next((n for n, a in enumerate(reversed(attempts)) if a.state != "running"), len(attempts))


def aside(home: Home, run: str) -> Path:
    """Where it is written that and why a run was set aside."""
    return home.root / "set-aside" / f"{run}.json"


def set_aside(home: Home, order: Ordered, error: BaseException) -> None:
    """Keep the spec, the traceback, the last checkpoint and the command that tries again."""
    record = {
        "run": order.job.run,
        "name": order.name,
        "where": order.where,
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "spec": order.job.spec.model_dump(mode="json"),
        "checkpoint": _last_checkpoint(home, order.job),
        "again": f"freescale resume {order.job.run}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    place(json.dumps(record, indent=1, ensure_ascii=False).encode(), aside(home, order.job.run))


def _last_checkpoint(home: Home, job: Job) -> dict[str, Any] | None:
    for call in job.plan.calls:
        steps = Checkpoints(home.store, call.key).steps()
        if steps:
            return {"stage": call.stage.name, "level": call.level, "step": max(steps)}
    return None
