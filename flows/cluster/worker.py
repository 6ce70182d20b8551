"""What runs in a worker process: its session with the model of its last task, and one job of a batch."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flows.batch.jobs_file import QueuedJob
from flows.batch.runner import POLL_SECONDS, Batch
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.observer import NullObserver
from stages.planner.budget import keep_freed
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flows.batch.runner import State
    from flows.batch.window import Window
    from flows.home import Home
    from flows.rendering.stop import StopEvent

_sessions: dict[tuple[Home, str], Session] = {}  # of this worker process: one at most, with its model


def worker_session(home: Home, options: dict[str, Any]) -> Session:
    """The session of this worker process; it keeps the model of its last task. `options` are fields of `RunOptions`."""
    checked = RunOptions.model_validate(options)
    key = (home, checked.model_dump_json())
    if key not in _sessions:
        _sessions.clear()
        keep_freed()
        _sessions[key] = Session(home, checked, NullObserver())
    return _sessions[key]


@contextmanager
def stop_on_file(stop_file: Path, stop: StopEvent) -> Iterator[None]:
    """Ask for a stop as soon as the file `stop_file` exists, while the body runs; its text is the reason."""
    over = threading.Event()

    def watch() -> None:
        """Set `stop` once the file is there."""
        while not over.wait(POLL_SECONDS):
            if stop_file.exists():
                stop.ask(stop_file.read_text(encoding="utf-8") or None)
                return

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def run_job(
    home: Home, options: dict[str, Any], window: Window, out: Path | None, fields: dict[str, Any], stop_file: Path
) -> State:
    """Work on one job as a batch of one job, and return how it ended; the file `stop_file` stops it.

    `fields` are the job's name, where it is written, and its spec.
    """
    session = worker_session(home, options)
    batch = Batch(home, session.options, NullObserver(), out=out, window=window, session=session)
    queued = QueuedJob(fields["name"], 0, fields["where"], prepare(make_spec(fields["spec"]), home))
    with stop_on_file(stop_file, batch.stop):
        return batch.run([queued])[queued.job.run]
