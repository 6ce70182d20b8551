"""The state of a run and of its attempts, as a person reads it: also of one whose process is gone.

An attempt says `running` from its begin on. While it says so and its process is gone, it was lost: killed, or with its
machine.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage import Attempt, RunRecord

STATES = ("running", "done", "stopped", "cancelled", "lost", "failed")  # what `state_of` begins with


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


def attempts_of(record: RunRecord) -> tuple[Attempt, ...]:
    """The attempts at a run, oldest first, with the state `lost` where the process is gone.

    Of the last one on another machine that cannot be told here.
    """
    last = len(record.attempts) - 1
    return tuple(
        each.revised(state="lost") if is_lost(each) and (at < last or state_of(record) == "lost") else each
        for at, each in enumerate(record.attempts)
    )


def retries(attempts: Sequence[Attempt]) -> int:
    """How often a run was tried again because an attempt failed or was lost; a stop, a pause or a find is no retry."""
    return sum(attempt.state == "failed" or is_lost(attempt) for attempt in attempts[:-1])


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
