"""What Prefect shows of a batch while it runs: the progress of every running job, and its newest picture.

A thread reads both in the home, so it makes no difference which process renders a job. What it finds goes to the
server through a `Sender`: no render waits for a server, and what a newer look replaces is not sent.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows.deployments.artifacts import Sender, picture_link
from flows.rendering.live import running
from flows.rendering.states import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.home import Home
    from flows.rendering.live import LiveProgress

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
PICTURES = {".png", ".tiff", ".webp"}  # of a video the strip of its frames is the last that is written


class RunningJobs:
    """Artifacts of the running jobs of a batch, for the flow run that makes it; `close` ends them.

    `jobs` gives the jobs of the batch. Of each there are two artifacts, named by the last 8 digits of its run:
    `progress-…` and `preview-…`.
    """

    def __init__(self, home: Home, jobs: Callable[[], Sequence[QueuedJob]]) -> None:
        self.home, self.jobs, self.sender = home, jobs, Sender()
        self._bars: dict[str, tuple[Any, float]] = {}  # of each run: the artifact of its progress bar, and its percent
        self._ended: set[str] = set()  # whose bars say so
        self._shown: dict[str, tuple[Path, int]] = {}  # the picture that was sent last, and when it was written
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="running jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send how the jobs ended, as far as the server answers in time."""
        self._over.set()
        self._thread.join()
        self.sender.close()

    def _work(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        """Read the home, and offer it to the server in place of what was not sent yet. Raises nothing."""
        try:
            names = {queued.job.run: queued.name for queued in self.jobs()}
            now = {run: at for run, at in running(self.home).items() if run in names}
            self.sender.offer(partial(self._send, now, names))
        except Exception as error:  # the home is not to be read now: the next look may
            log.warning("the running jobs are not shown: %s: %s", type(error).__name__, error)

    def _send(self, now: dict[str, LiveProgress], names: dict[str, str]) -> None:
        """Update the artifacts: of running jobs, and of those that ran at the last look."""
        for run, at in now.items():
            self._ended.discard(run)
            self._bar(run, at.percent, f"{names[run]}: {at}")
            self._picture(run, names[run])
        for run in self._bars.keys() - now.keys() - self._ended:
            state = state_of(self.home.runs.load(run))
            self._bar(run, 100.0 if state == "done" else self._bars[run][1], f"{names[run]}: {state}")
            self._picture(run, names[run])
            self._ended.add(run)

    def _bar(self, run: str, percent: float, says: str) -> None:
        if run in self._bars:
            made, _ = self._bars[run]
            update_progress_artifact(made, progress=percent, description=says)
        else:
            made = create_progress_artifact(percent, key=f"progress-{run[-8:]}", description=says)
        self._bars[run] = (made, percent)

    def _picture(self, run: str, name: str) -> None:
        """Show the newest picture of a run, or of a video the strip of its frames, where it was not shown yet."""
        found = newest_picture(self.home.outputs(run))
        if found is not None and self._shown.get(run) != found:
            path = found[0]
            text = f"{name}: `{path}`\n\n{picture_link(name, path)}"
            create_markdown_artifact(text, key=f"preview-{run[-8:]}", description=path.name)
            self._shown[run] = found


def newest_picture(folder: Path) -> tuple[Path, int] | None:
    """The picture in a run's folder that was written last, and when in nanoseconds; None where there is none."""
    files = [path for path in folder.glob("level-*") if path.suffix in PICTURES]
    return max(((path, path.stat().st_mtime_ns) for path in files), key=lambda found: found[1], default=None)
