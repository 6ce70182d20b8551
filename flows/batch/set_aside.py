"""Jobs that a batch gave up on: a record for each in the home's folder `set-aside`, which says why.

While the record is there, no batch of this home tries the job again.
"""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.batch.blame import deaths
from flows.rendering.files import write_whole
from storage import Checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.home import Home
    from flows.rendering.job import Job


def set_aside_path(home: Home, run: str) -> Path:
    """The file that says that a run was set aside, and why; it exists only while the run is set aside."""
    return home.root / "set-aside" / f"{run}.json"


def write_set_aside(home: Home, queued: QueuedJob, error: BaseException) -> None:
    """Set a job aside: write its spec, the error with its traceback, its last checkpoint, the command to retry.

    Of its last deaths in a row the record says which were held against it, and why.
    """
    record = {
        "run": queued.job.run,
        "name": queued.name,
        "where": queued.where,
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "spec": queued.job.spec.model_dump(mode="json"),
        "deaths": [death.as_json() for death in deaths(home, queued.job)],
        "checkpoint": _last_checkpoint(home, queued.job),
        "again": f"freescale resume {queued.job.run}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_whole(json.dumps(record, indent=1, ensure_ascii=False).encode(), set_aside_path(home, queued.job.run))


def read_set_aside(home: Home, run: str) -> dict[str, Any]:
    """The record of a run that was set aside, with the fields of `write_set_aside`.

    Raises `FileNotFoundError` for a run that was not.
    """
    record: dict[str, Any] = json.loads(set_aside_path(home, run).read_text(encoding="utf-8"))
    return record


def take_back(home: Home, run: str) -> None:
    """Let the next batch try a run again, where it was set aside."""
    set_aside_path(home, run).unlink(missing_ok=True)


def _last_checkpoint(home: Home, job: Job) -> dict[str, Any] | None:
    for call in job.plan.calls:
        steps = Checkpoints(home.store, call.key).steps()
        if steps:
            return {"stage": call.stage.name, "level": call.level, "step": max(steps)}
    return None
