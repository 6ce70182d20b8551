"""One page a night: every picture at full resolution, what was set aside and why, what each cost."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.pages.html import contact_sheet, html, shown
from flows.rendering.costs import cost
from flows.rendering.session import place
from storage import RunNotFoundError, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import Ordered
    from flows.batch.runner import State
    from flows.home import Home
    from flows.rendering.session import Job

PAGE, SHEET, RECORD = "index.html", "contact-sheet.png", "night.json"
COLUMNS = 6  # of the contact sheet


def night_folder(home: Home, orders: Sequence[Ordered]) -> Path:
    """Where the page of these jobs goes today: given again today it is written anew, tomorrow it is another."""
    jobs = fingerprint(sorted(order.job.run for order in orders))[:8]
    return home.root / "nights" / f"{datetime.now().astimezone():%Y-%m-%d}-{jobs}"


def write_night(folder: Path, orders: Sequence[Ordered], states: Mapping[str, State], home: Home) -> list[Path]:
    """Write what became of the jobs; return page, contact sheet and record."""
    jobs = [_told(folder, order, states[order.job.run], home) for order in orders]
    record = {"night": folder.name, "jobs": jobs}
    rows = [
        (", ".join(job["name"] for job in jobs[at : at + COLUMNS]), jobs[at : at + COLUMNS])
        for at in range(0, len(jobs), COLUMNS)
    ]
    return [
        place(html("night", f"Night of {folder.name[:10]}", record).encode(), folder / PAGE),
        place(contact_sheet(folder, (), rows), folder / SHEET),
        place((json.dumps(record, indent=1) + "\n").encode(), folder / RECORD),
    ]


def costs(orders: Sequence[Ordered], states: Mapping[str, State], home: Home) -> list[dict[str, Any]]:
    """A line a job: how it ended, seconds of all its stages, retries."""
    return [
        {
            "job": order.name,
            "state": states[order.job.run],
            "seconds": None if (spent := cost(home.store, order.job.plan)) is None else round(spent.seconds, 1),
            "retries": max(len(_attempts(home, order.job)) - 1, 0),
        }
        for order in orders
    ]


def _told(folder: Path, order: Ordered, state: State, home: Home) -> dict[str, Any]:
    job, spec = order.job, order.job.spec
    stages = list(_stages(home, job))
    return shown(folder, job, state, home) | {
        "name": order.name,
        "where": order.where,
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
