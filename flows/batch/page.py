"""The page of a batch: every picture at full resolution, the jobs that were set aside and why, and what each cost."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.batch.job_card import job_card
from flows.pages.html import contact_sheet, html
from flows.rendering.costs import cost
from flows.rendering.files import write_whole
from storage import RunNotFoundError, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob
    from flows.batch.runner import State
    from flows.home import Home
    from flows.rendering.job import Job

PAGE, SHEET, RECORD = "index.html", "contact-sheet.png", "night.json"
COLUMNS = 6  # of the contact sheet


def page_folder(home: Home, jobs: Sequence[QueuedJob]) -> Path:
    """The folder of the page of these jobs: one a day, named by the date and 8 hex digits of the runs."""
    runs = fingerprint(sorted(queued.job.run for queued in jobs))[:8]
    return home.root / "nights" / f"{datetime.now().astimezone():%Y-%m-%d}-{runs}"


def write_page(folder: Path, jobs: Sequence[QueuedJob], states: Mapping[str, State], home: Home) -> list[Path]:
    """Write the page of a batch, its contact sheet and its record, and return their paths in this order.

    Pictures and videos are copied under `folder`. `states` has the state of every job by its run.
    """
    cards = [_card(folder, queued, states[queued.job.run], home) for queued in jobs]
    record = {"night": folder.name, "jobs": cards}
    rows = [
        (", ".join(card["name"] for card in cards[at : at + COLUMNS]), cards[at : at + COLUMNS])
        for at in range(0, len(cards), COLUMNS)
    ]
    return [
        write_whole(html("night", f"Night of {folder.name[:10]}", record).encode(), folder / PAGE),
        write_whole(contact_sheet(folder, (), rows), folder / SHEET),
        write_whole((json.dumps(record, indent=1) + "\n").encode(), folder / RECORD),
    ]


def costs(jobs: Sequence[QueuedJob], states: Mapping[str, State], home: Home) -> list[dict[str, Any]]:
    """A row for each job: its name and state, the seconds of all its stages (None where unknown), its retries."""
    return [
        {
            "job": queued.name,
            "state": states[queued.job.run],
            "seconds": None if (spent := cost(home.store, queued.job.plan)) is None else round(spent.seconds, 1),
            "retries": max(len(_attempts(home, queued.job)) - 1, 0),
        }
        for queued in jobs
    ]


def _card(folder: Path, queued: QueuedJob, state: State, home: Home) -> dict[str, Any]:
    job, spec = queued.job, queued.job.spec
    stages = list(_stages(home, job))
    return job_card(folder, job, state, home) | {
        "name": queued.name,
        "where": queued.where,
        "prompt": spec.prompt,
        "seed": spec.seed,
        "size": f"{spec.width}x{spec.height}",
        "method": spec.method.name,
        "spec": spec.model_dump(mode="json"),
        "stages": stages,
        "peak_memory": max((stage["peak_memory"] or 0 for stage in stages), default=0),
        "attempts": _attempts(home, job),
    }


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


def _attempts(home: Home, job: Job) -> list[dict[str, Any]]:
    try:
        return [attempt.model_dump(mode="json") for attempt in home.runs.load(job.run).attempts]
    except RunNotFoundError:
        return []
