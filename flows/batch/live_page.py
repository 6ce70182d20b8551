"""The page of a batch while it runs: a thread writes it anew, and nothing that goes wrong there reaches the batch."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from flows.batch.page import PAGE, page_folder, write_page, write_running_page
from flows.rendering.live import running

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from flows.batch.jobs_file import Jobs, Problem, QueuedJob
    from flows.batch.page import Cards
    from flows.batch.runner import State
    from flows.home import Home

log = logging.getLogger(__name__)

RENEW_SECONDS = 10.0  # between two pages while no job begins or ends
LOOK_SECONDS = 1.0  # between two looks at which jobs run
SHARE = 20  # of the time that writing a page takes: at least so long until the next one


class LivePage:
    """The page of a batch, from its first jobs to its end; used as a context, in which the batch runs.

    `show` is told the jobs, and again where there are more. `finish` writes the page for the last time; where it is not
    called, the end of the context does.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder: Path | None = None  # named by the first jobs and their day
        self._jobs: dict[str, QueuedJob] = {}
        self._problems: tuple[Problem, ...] = ()
        self._made: Cards = {}
        self._over, self._is_final = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)

    @property
    def jobs(self) -> tuple[QueuedJob, ...]:
        """The jobs that it shows."""
        return tuple(self._jobs.values())

    @property
    def left_out(self) -> tuple[Problem, ...]:
        """The jobs that cannot be rendered, as `show` was told last."""
        return self._problems

    @property
    def path(self) -> Path | None:
        """Where the page is; None before there are jobs."""
        return None if self.folder is None else self.folder / PAGE

    def show(self, listed: Jobs) -> Jobs:
        """Show these jobs too, and in place of earlier problems theirs; return `listed`."""
        self._jobs = self._jobs | {queued.job.run: queued for queued in listed.jobs}
        self._problems = listed.problems
        if self.folder is None and self._jobs:
            self.folder = page_folder(self.home, self.jobs)
            self._thread.start()
        return listed

    def finish(self, states: Mapping[str, State]) -> list[Path]:
        """Write the page of the end; return the paths of page, contact sheet and record.

        `states` is what the batch returned. Raises `OSError` where a file cannot be written.
        """
        assert self.folder is not None, "a batch without jobs has no page"
        self._stop()
        paths = write_page(self.folder, self.jobs, states, self.home, self._problems, self._made)
        self._is_final = True
        return paths

    def __enter__(self) -> LivePage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        if self.folder is not None and not self._is_final:
            with suppress(Exception):  # the batch ended before its time, and says so itself
                self.finish({})

    def _stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        shown, written, took = frozenset[str](), float("-inf"), 0.0
        while not self._over.is_set():
            now = frozenset(running(self.home))
            since = time.monotonic() - written
            if since >= SHARE * took and (now != shown or since >= RENEW_SECONDS):
                began = time.monotonic()
                self._write(max(RENEW_SECONDS, SHARE * took))
                shown, written = now, time.monotonic()
                took = written - began
            self._over.wait(LOOK_SECONDS)

    def _write(self, seconds: float) -> None:
        assert self.folder is not None
        try:
            write_running_page(self.folder, self.jobs, self.home, self._problems, self._made, seconds)
        except Exception as error:  # the next one may be written
            log.warning("the page could not be renewed: %s: %s", type(error).__name__, error)
