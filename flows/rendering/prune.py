"""What of a home may be deleted: pictures and videos stay, and everything of a run that is not done.

What is needed follows from the plans of all runs. A run that is done needs its exports; what they were made from is
made again when `redo` or another command needs it. Artifacts that are in no run's plan are readings of an evaluation;
they stay unless they are asked for.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from stages.errors import SpecError, not_one_of
from stages.planner.amounts import parse_bytes
from storage import DamagedRunError
from storage.prune import Leftover, size, survey, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.home import Home
    from storage import RunRecord

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def parse_age(text: str, field: str = "older_than") -> timedelta:
    """The age that a text like `12h`, `7d` or `2w` says. Raises `SpecError`, which names `field`, for another text."""
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise SpecError(f"{field}: {text!r} is not a number and h, d or w, for example 7d")
    return int(match[1]) * UNITS[match[2]]


def parse_max_size(text: str) -> int:
    """The bytes that a text like `500MiB` or `50GB` says (`stages.planner.amounts`). Raises `SpecError` for another."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise SpecError(f"max_size: {text!r} {error}") from None


def needless(
    home: Home, age: timedelta, run: str | None = None, most: int | None = None, readings: bool = False
) -> list[Leftover]:
    """What may be deleted and is older than `age`, oldest first; `readings` of evaluations only where asked for.

    With `run`, only what no other run needs; with `most`, only so much that the store has at most `most` bytes then.
    Raises `SpecError` for an unknown run, and where a run's record cannot be read: what it needs is not known then.
    """
    records = list(_records(home))
    planned = {call.key for record in records for call in record.plan}
    keep = {call.key for record in records for call in record.plan if record.state != "done" or call.stage == "export"}
    if not readings:
        keep |= set(home.store.list_keys()) - planned
    found = survey(home.store, keep, datetime.now(UTC) - age)
    if run is not None:
        mine = {call.key for record in records if record.run == run for call in record.plan}
        if not mine:
            raise SpecError(f"run: {not_one_of(run, [record.run for record in records], listed_by='freescale runs')}")
        others = {call.key for record in records if record.run != run for call in record.plan}
        found = [one for one in found if one.name in mine - others]
    return found if most is None else list(_until(found, size(home.store) - most))


def _records(home: Home) -> Iterator[RunRecord]:
    for name in home.runs.names():
        try:
            yield home.runs.load(name)
        except (DamagedRunError, ValueError) as error:
            raise SpecError(f"run: {name} cannot be read, so nothing is pruned: {error}") from None


def _until(found: list[Leftover], excess: int) -> Iterator[Leftover]:
    for one in found:
        if excess <= 0:
            return
        excess -= one.bytes
        yield one


def prune(home: Home, found: list[Leftover], again: list[Leftover]) -> tuple[list[Leftover], list[Leftover]]:
    """Delete what was found needless both times, so that a run that began in between keeps what it needs.

    Returns what was deleted and what was left because it is in use.
    """
    still = {(one.kind, one.name) for one in again}
    return sweep(home.store, [one for one in found if (one.kind, one.name) in still])
