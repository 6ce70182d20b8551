"""Attempts at a run: a process writes into the run's record that it begins, and how it ended."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flows.rendering.job import planned
from flows.rendering.live import last_sign
from flows.rendering.states import boot_id, is_lost
from storage import Attempt, Checkpoints, RunNotFoundError, RunRecord

if TYPE_CHECKING:
    from pathlib import Path

    from flows.home import Home
    from flows.rendering.job import Job
    from storage import Runs

LOST = "its process died"


def begin_attempt(job: Job, home: Home, made_for: str | None = None, target: Path | None = None) -> RunRecord:
    """Record that this process begins to work on a run, and return the record; it is made where there is none.

    Attempts before it whose process is gone are recorded as lost. `made_for`: what asked for the run, such as
    `evaluation`; a run that a person asks for is no longer that. `target` is where the last picture goes; the record
    keeps the first.
    """
    attempt = Attempt(
        started=datetime.now(UTC),
        host=socket.gethostname(),
        process=os.getpid(),
        boot=boot_id(),
        reached=reached(job, home),
    )
    asked = None if target is None else str(target)
    try:
        found = home.runs.load(job.run)
        before = (_lost(each, job.run, home) if is_lost(each) else each for each in found.attempts[-99:])
        record = found.revised(
            state="running",
            error=None,
            attempts=(*before, attempt),
            made_for=found.made_for and made_for,
            target=found.target or asked,
        )
    except RunNotFoundError:
        record = RunRecord(
            run=job.run,
            spec=job.spec.model_dump(mode="json"),
            plan=planned(job.plan),
            origin=job.origin,
            origin_stage=job.origin_stage,
            made_for=made_for,
            target=asked,
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


def _lost(attempt: Attempt, run: str, home: Home) -> Attempt:
    """An attempt whose process is gone: it ended when its progress file was last written, as far as is known."""
    sign = last_sign(home, run)
    is_its = sign is not None and (sign.host, sign.process) == (attempt.host, attempt.process)
    finished = sign.at if sign is not None and is_its and sign.at >= attempt.started else attempt.finished
    return attempt.revised(state="lost", error=LOST, finished=finished)


def reached(job: Job, home: Home) -> str:
    """How far a run is: the number of its artifacts, and its newest checkpoint; more work always gives another text."""
    store = home.store
    missing = [call for call in job.plan.calls if store.find(call.key) is None]
    text = f"{len(job.plan.calls) - len(missing)} of {len(job.plan.calls)} stages"
    for call in missing:
        if steps := Checkpoints(store, call.key).steps():
            return f"{text}, {call.label} at step {max(steps)}"
    return text
