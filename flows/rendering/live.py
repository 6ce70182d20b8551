"""How far a run is, for other processes: a small file in the home while a process renders it.

`cache/progress/RUN.json` names the stage, the step and the seconds left. The process that renders writes it, whoever
asked for the render: the command line, a worker of a cluster, a Prefect flow. It is removed at the end. One that a
killed process left behind is told by the record of its run.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict

from flows.rendering.progress import RenderProgress
from flows.rendering.states import state_of
from storage import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from flows.home import Home
    from flows.rendering.job import Job
    from stages.call import Call
    from stages.observer import Observer, Outcome
    from storage import RunRecord

WRITE_SECONDS = 2.0  # between two writes for steps; the begin of a stage is always written


class LiveProgress(BaseModel):
    """Where a run was when its process last wrote it down."""

    model_config = ConfigDict(frozen=True)

    stage: str  # with its level
    step: int | None  # of `steps`; None in a stage that has none
    steps: int | None
    percent: float  # of the work of the whole run
    seconds_left: float | None  # until the end of the run; None until something was made
    at: AwareDatetime
    host: str
    process: int

    def __str__(self) -> str:
        """One line for a person: `detail_pass 1, step 12 of 50, 80 s left`."""
        parts = [self.stage]
        if self.step is not None:
            parts.append(f"step {self.step} of {self.steps}")
        if (left := self.seconds_left_now) is not None:
            parts.append(f"{left:.0f} s left")
        return ", ".join(parts)

    @property
    def seconds_left_now(self) -> float | None:
        """Seconds until the end, without those that passed since it was written."""
        if self.seconds_left is None:
            return None
        return max(self.seconds_left - (datetime.now(UTC) - self.at).total_seconds(), 0.0)


class ProgressFile:
    """An observer that keeps the progress file of a run. Where the disk takes no file, the next write tries again."""

    def __init__(self, home: Home, job: Job) -> None:
        self.path, self.progress = _path(home, job.run), RenderProgress.of(job.plan)
        self._written = float("-inf")

    def started(self, call: Call, resumed_at: int | None) -> None:
        """Write that a stage begins, or goes on at a step."""
        if resumed_at is not None:
            self.progress.resumed(call, resumed_at)
        self._write(call, None if resumed_at is None else resumed_at - 1)

    def stepped(self, call: Call, step: int) -> None:
        """Count a step, and write it where the last write is `WRITE_SECONDS` ago."""
        self.progress.stepped(call)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write(call, step)

    def finished(self, outcome: Outcome) -> None:
        """Count what is left of a stage; the next one writes."""
        self.progress.finished(outcome)

    def remove(self) -> None:
        """Remove the file: the run's record says how it ended."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _write(self, call: Call, step: int | None) -> None:
        steps = call.stage.span[1] or None
        now = LiveProgress(
            stage=call.label,
            step=step if steps else None,
            steps=steps,
            percent=round(self.progress.percent, 1),
            seconds_left=self.progress.seconds_left,
            at=datetime.now(UTC),
            host=socket.gethostname(),
            process=os.getpid(),
        )
        self._written = time.monotonic()
        with suppress(OSError):
            _replace(self.path, now.model_dump_json())


class Both:
    """An observer that tells two others."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self.first, self.second = first, second

    def started(self, call: Call, resumed_at: int | None) -> None:
        """A stage begins, or goes on at a step."""
        self.first.started(call, resumed_at)
        self.second.started(call, resumed_at)

    def stepped(self, call: Call, step: int) -> None:
        """A step of a long stage is done; `step` counts from 1."""
        self.first.stepped(call, step)
        self.second.stepped(call, step)

    def finished(self, outcome: Outcome) -> None:
        """A stage's artifact is there, made or found."""
        self.first.finished(outcome)
        self.second.finished(outcome)


def progress_of(home: Home, record: RunRecord) -> LiveProgress | None:
    """Where a run is now; None where nobody works on it, or its process has written nothing yet."""
    found = last_sign(home, record.run)
    if found is None or state_of(record) != "running" or not record.attempts:
        return None
    last = record.attempts[-1]
    return found if (found.host, found.process) == (last.host, last.process) and found.at >= last.started else None


def last_sign(home: Home, run: str) -> LiveProgress | None:
    """What the progress file of a run says, also one that a killed process left; None where there is none."""
    try:
        return LiveProgress.model_validate_json(_path(home, run).read_bytes())
    except (OSError, ValueError):
        return None


def running(home: Home) -> dict[str, LiveProgress]:
    """Where every run is that a process works on now, by its name."""
    found = {}
    for path in sorted((home.root / "cache" / "progress").glob("*.json")):
        try:
            now = progress_of(home, home.runs.load(path.stem))
        except StorageError:
            continue
        if now is not None:
            found[path.stem] = now
    return found


def _path(home: Home, run: str) -> Path:
    return home.root / "cache" / "progress" / f"{run}.json"


def _replace(path: Path, text: str) -> None:
    """Put `text` into a file in one instant; unlike an artifact, it need not outlive the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
