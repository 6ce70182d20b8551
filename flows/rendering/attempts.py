"""Attempts at a run: who works on it since when, how each ended, and which of them died.

A process writes its attempt into the run's record before it works and how it ended afterwards. So an attempt that says
`running` while its process is gone was lost: killed, or with its machine.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flows.rendering.job import planned
from storage import Attempt, Checkpoints, RunNotFoundError, RunRecord

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job
    from storage import Runs

LOST = "its process died"


def begin_attempt(job: Job, home: Home) -> RunRecord:
    """Record that this process begins to work on a run, and return the record; it is made where there is none.

    Attempts before it whose process is gone are recorded as lost.
    """
    attempt = Attempt(
        started=datetime.now(UTC),
        host=socket.gethostname(),
        process=os.getpid(),
        boot=boot_id(),
        place=place(job, home),
    )
    try:
        found = home.runs.load(job.run)
        before = (each.revised(state="lost", error=LOST) if is_lost(each) else each for each in found.attempts[-99:])
        record = found.revised(state="running", error=None, attempts=(*before, attempt))
    except RunNotFoundError:
        record = RunRecord(
            run=job.run,
            spec=job.spec.model_dump(mode="json"),
            plan=planned(job.plan),
            origin=job.origin,
            origin_stage=job.origin_stage,
            attempts=(attempt,),
            created=datetime.now(UTC),
        )
    home.runs.save(record)
    return record


def end_attempt(
    runs: Runs,
    record: RunRecord,
    state: str,
    error: str | None,
    outputs: tuple[Path, ...] = (),
    remarks: tuple[str, ...] = (),
) -> None:
    """Record how the last attempt of a run ended: `state` is done, interrupted, cancelled or failed."""
    last = record.attempts[-1].revised(finished=datetime.now(UTC), state=state, error=error, remarks=remarks)
    kept = tuple(str(path) for path in outputs) or record.outputs
    runs.save(record.revised(state=state, error=error, outputs=kept, attempts=(*record.attempts[:-1], last)))


def is_lost(attempt: Attempt) -> bool:
    """Whether an attempt still says `running` though its process cannot be alive, as far as this machine can tell.

    Of another machine it cannot tell: the lock of the run says there whether somebody works on it.
    """
    if attempt.state != "running":
        return attempt.state == "lost"
    return attempt.host != socket.gethostname() or not _is_alive(attempt)


def state_of(record: RunRecord) -> str:
    """The state of a run for a person: `running`, `done`, `stopped after step 12`, `cancelled`, `lost` or `failed`."""
    last = record.attempts[-1] if record.attempts else None
    if record.state == "running" and last is not None and last.host == socket.gethostname() and not _is_alive(last):
        return "lost"
    if record.state == "interrupted":
        _, found, step = (record.error or "").partition(" after step ")
        return f"stopped after step {step.split(' ')[0]}" if found else "stopped"
    return record.state


def place(job: Job, home: Home) -> str:
    """How far a run is: the number of its artifacts, and its newest checkpoint; more work always gives another text."""
    store = home.store
    missing = [call for call in job.plan.calls if store.find(call.key) is None]
    text = f"{len(job.plan.calls) - len(missing)} of {len(job.plan.calls)} stages"
    for call in missing:
        if steps := Checkpoints(store, call.key).steps():
            return f"{text}, {call.label} at step {max(steps)}"
    return text


@cache
def boot_id() -> str | None:
    """An identifier of this start of the machine; None where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _is_alive(attempt: Attempt) -> bool:
    """Whether the process of an attempt of this machine is there, and no later one of the same number."""
    import psutil  # type: ignore[import-untyped]

    if attempt.process is None or attempt.boot not in (None, boot_id()):
        return False
    try:
        began = datetime.fromtimestamp(psutil.Process(attempt.process).create_time(), UTC)
    except psutil.Error:
        return False
    return began <= attempt.started + timedelta(seconds=1)
