"""The page of a batch: every picture at full resolution, what became of each job and why, and what it cost.

While the batch runs, the page shows which job is at which step, and renews itself (`flows/batch/live_page.py`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.batch.job_card import job_card
from flows.batch.set_aside import set_aside_path
from flows.pages.html import contact_sheet, html
from flows.rendering.attempts import reached
from flows.rendering.costs import cost, seconds_spent
from flows.rendering.files import write_whole
from flows.rendering.live import progress_of
from flows.rendering.states import attempts_of, retries, state_of
from storage import StorageError, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import Problem, QueuedJob
    from flows.batch.runner import State
    from flows.home import Home
    from flows.rendering.job import Job
    from storage import RunRecord

PAGE, SHEET, RECORD = "index.html", "contact-sheet.png", "night.json"
COLUMNS = 6  # of the contact sheet
ENDED = ("done", "set aside", "damaged")  # what no batch works on again by itself
Cards = dict[str, dict[str, Any]]  # of jobs that are done, by run


def page_folder(home: Home, jobs: Sequence[QueuedJob]) -> Path:
    """The folder of the page of these jobs: one a day, named by the date and 8 hex digits of the runs."""
    runs = fingerprint(sorted(queued.job.run for queued in jobs))[:8]
    return home.root / "nights" / f"{datetime.now().astimezone():%Y-%m-%d}-{runs}"


def write_page(
    folder: Path, jobs: Sequence[QueuedJob], states: Mapping[str, State], home: Home,
    problems: Sequence[Problem] = (), made: Cards | None = None,
) -> list[Path]:  # fmt: skip
    """Write the page of a batch, its contact sheet and its record, and return their paths in this order.

    Pictures and videos are copied under `folder`. `states` has the state of a job by its run; of others, and of those
    that are left, the home tells it. `problems` are the jobs that were left out. `made` has cards that are made
    already.
    """
    record = _record(folder, jobs, states, home, problems, {} if made is None else made)
    cards = record["jobs"]
    rows = [
        (", ".join(card["name"] for card in cards[at : at + COLUMNS]), cards[at : at + COLUMNS])
        for at in range(0, len(cards), COLUMNS)
    ]
    return [
        write_whole(html("night", f"Night of {folder.name[:10]}", record).encode(), folder / PAGE),
        write_whole(contact_sheet(folder, (), rows), folder / SHEET),
        write_whole((json.dumps(record, indent=1) + "\n").encode(), folder / RECORD),
    ]


def write_running_page(
    folder: Path, jobs: Sequence[QueuedJob], home: Home, problems: Sequence[Problem], made: Cards, seconds: float
) -> Path:
    """Write the page of a batch that runs, and return its path; the page renews itself every so many `seconds`.

    It says which jobs run and how far they are, and which is next. `made` keeps the cards of jobs that are done.
    """
    record = _record(folder, jobs, {}, home, problems, made)
    waiting = [card for card in record["jobs"] if card["state"] not in (*ENDED, "running")]
    following = min(waiting, key=lambda card: card["state"] == "lost", default={"name": None})  # those wait for others
    live = {"written": datetime.now(UTC).isoformat(), "seconds": seconds, "next": following["name"]}
    return write_whole(html("night", f"Night of {folder.name[:10]}", record | {"live": live}).encode(), folder / PAGE)


def costs(jobs: Sequence[QueuedJob], states: Mapping[str, State], home: Home) -> list[dict[str, Any]]:
    """A row for each job: its name and state, its retries, and the seconds of all its stages.

    Where those are unknown, the seconds are those of all attempts; None of a job that was not begun.
    """
    rows = []
    for queued in jobs:
        record, known = _run(home, queued.job), cost(home.store, queued.job.plan)
        spent = None if record is None else seconds_spent(home, queued.job.plan, record)
        seconds = spent if known is None else known.seconds
        rows.append(
            {
                "job": queued.name,
                "state": job_state(home, queued.job, states.get(queued.job.run), record),
                "seconds": None if seconds is None else round(seconds, 1),
                "retries": 0 if record is None else retries(record.attempts),
            }
        )
    return rows


def job_state(home: Home, job: Job, state: State | None, record: RunRecord | None) -> str:
    """What became of a job, in words.

    `done`, `set aside`, `running`, `stopped after step 12`, `cancelled`, `lost`, `failed` or `not begun`. `state` is
    what a batch returned for it, `record` that of its run; None where there is none.
    """
    if state in ("done", "set aside"):
        return state
    if set_aside_path(home, job.run).exists():
        return "set aside"
    if record is None:
        return "not begun"
    found = state_of(record)
    is_gone = found == "done" and home.store.find(job.plan.exports[-1].key) is None
    return "not begun" if is_gone else found


def _record(
    folder: Path, jobs: Sequence[QueuedJob], states: Mapping[str, State], home: Home,
    problems: Sequence[Problem], made: Cards,
) -> dict[str, Any]:  # fmt: skip
    begun = set(home.runs.names())
    cards = []
    for queued in jobs:
        run = queued.job.run
        if run not in made or states.get(run, "done") != "done":
            card = _card(folder, queued, states.get(run), home, _run(home, queued.job) if run in begun else None)
            if card["state"] != "done":
                cards.append(card)
                continue
            made[run] = card
        cards.append(made[run])
    left_out = [{"name": problem.where, "state": "left out", "error": problem.says} for problem in problems]
    return {"night": folder.name, "jobs": cards, "left_out": left_out}


def _card(folder: Path, queued: QueuedJob, state: State | None, home: Home, record: RunRecord | None) -> dict[str, Any]:
    job, spec = queued.job, queued.job.spec
    stages = [] if record is None else _stages(home, job)
    now = job_state(home, job, state, record)
    return (
        job_card(folder, job, now, home)
        | _so_far(home, job, now, record)
        | {
            "name": queued.name,
            "where": queued.where,
            "prompt": spec.prompt,
            "seed": spec.seed,
            "size": f"{spec.width}x{spec.height}",
            "method": spec.method.name,
            "spec": spec.model_dump(mode="json"),
            "stages": stages,
            "peak_memory": max((stage["peak_memory"] or 0 for stage in stages), default=0),
        }
    )


def _so_far(home: Home, job: Job, state: str, record: RunRecord | None) -> dict[str, Any]:
    """The attempts at a job, what they cost, and of a job that is not at its end how far it is."""
    if record is None:
        return {"attempts": [], "retries": 0, "spent": None}
    found = {
        "attempts": [attempt.model_dump(mode="json") for attempt in attempts_of(record)],
        "retries": retries(record.attempts),
        "spent": round(seconds_spent(home, job.plan, record), 1),
    }
    if state not in ENDED and state != "not begun":
        found |= {"error": record.error, "reached": reached(job, home)}
        at = progress_of(home, record)
        found["progress"] = None if at is None else at.model_dump(mode="json") | {"says": str(at)}
    return found


def _stages(home: Home, job: Job) -> list[dict[str, Any]]:
    found = []
    for call in job.plan.calls:
        manifest = home.store.find(call.key)
        if manifest is not None:
            found.append(
                {
                    "stage": call.label,
                    "seconds": manifest.seconds,
                    "resumed_at": list(manifest.resumed_at),
                    "peak_memory": manifest.peak_memory,
                    "device": manifest.device,
                }
            )
    return found


def _run(home: Home, job: Job) -> RunRecord | None:
    try:
        return home.runs.load(job.run)
    except StorageError:  # none yet, or a damaged one: a page shows what there is
        return None
