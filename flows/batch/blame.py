"""What is held against a job: deaths of its process that only the job explains, and memory that no other program took.

A hang-up, a kill from outside, a restart of the machine and memory taken by others say nothing about a job. A death is
counted where the job explains it: the process died again at the same place, without progress, while others lived.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from flows.rendering.attempts import reached
from flows.rendering.states import boot_id, is_lost
from stages.device import pick_device
from stages.planner.budget import TooLittleFreeError, check, host_bytes
from storage import RunNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flows.batch.jobs_file import QueuedJob
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.plan import Plan
    from stages.spec import RunOptions
    from storage import Attempt


@dataclass(frozen=True)
class Death:
    """An attempt whose process died: whether it is held against the job, and why or why not."""

    attempt: Attempt
    counted: bool
    why: str

    @property
    def reached(self) -> str | None:
        """How far the run was when the attempt began."""
        return self.attempt.reached

    def as_json(self) -> dict[str, Any]:
        """What a record says of it."""
        started = self.attempt.started.isoformat(timespec="seconds")
        return {"started": started, "host": self.attempt.host, "counted": self.counted, "why": self.why}


def deaths(home: Home, job: Job) -> list[Death]:
    """The last attempts at a run, oldest first, that ended in a row with the death of their process."""
    row = _lost_in_a_row(home, job.run)
    if not row:
        return []
    others_lived = _others_lived(home, job.run, row[0])
    now = reached(job, home)
    after = [*row[1:], None]
    return [_judged(each, following, now, others_lived) for each, following in zip(row, after, strict=True)]


def _lost_in_a_row(home: Home, run: str) -> list[Attempt]:
    """The last attempts at a run, oldest first, whose processes died; none where the run was not begun."""
    try:
        attempts = home.runs.load(run).attempts
    except RunNotFoundError:
        return []
    return list(takewhile(is_lost, reversed(attempts)))[::-1]


def _judged(attempt: Attempt, following: Attempt | None, now: str, others_lived: bool) -> Death:
    then = now if following is None else following.reached
    host, boot = (socket.gethostname(), boot_id()) if following is None else (following.host, following.boot)
    if attempt.reached is None or then is None:
        return Death(attempt, False, "where it died was not recorded")
    if attempt.host == host and attempt.boot != boot:
        return Death(attempt, False, "the machine was started again")
    if attempt.reached != then:
        return Death(attempt, False, f"it had gone on from {attempt.reached} to {then}")
    if not others_lived:
        return Death(attempt, False, "no other job is known to have lived since")
    return Death(attempt, True, f"no progress at {then}, and other jobs lived")


def _others_lived(home: Home, run: str, first: Attempt) -> bool:
    """Whether an attempt at another run ended in order, or still runs, since `first` began."""
    for record in home.runs.list():
        if record.run != run:
            for attempt in record.attempts:
                runs_now = attempt.state == "running" and not is_lost(attempt)
                ended = None if attempt.state == "lost" else attempt.finished
                if runs_now or (ended is not None and ended > first.started):
                    return True
    return False


def last_those_that_died(jobs: Iterable[QueuedJob], home: Home) -> list[QueuedJob]:
    """The jobs in their order, but those whose process died last time at the end: the others shall not wait for them.

    Among those, the one with the fewest deaths comes first.
    """
    return sorted(jobs, key=lambda queued: len(_lost_in_a_row(home, queued.job.run)))


def memory_is_taken(error: Exception, plan: Plan, options: RunOptions) -> bool:
    """Whether `error` is for want of host memory that would be enough, had not other programs taken it."""
    if options.memory is not None or pick_device(options.device).type != "cpu":
        return False
    if isinstance(error, TooLittleFreeError):
        return error.needed <= host_bytes()
    if not _wants_memory(error):
        return False
    try:
        check(plan.calls, plan.info, options, torch.device("cpu"))
    except TooLittleFreeError as now:
        return now.needed <= host_bytes()
    return False


def _wants_memory(error: Exception) -> bool:
    is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError)
    is_systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return is_ours or is_systems or "DefaultCPUAllocator" in str(error)
