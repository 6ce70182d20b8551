"""`freescale prune`: what of a home may go. Pictures stay; of a run that is not done, everything stays.

Roots are the plans of all runs. A done run needs its exports; what they were made from is made again by `redo`, or
when somebody asks. Artifacts that no run's plan names are readings of an evaluation, and stay unless asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from stages.errors import SpecError
from storage import DamagedRunError
from storage.prune import Leftover, size, survey, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.home import Home
    from storage import RunRecord

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
SIZES = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_age(text: str) -> timedelta:
    """`12h`, `7d`, `2w`. Raises `SpecError`."""
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise SpecError(f"older_than: {text!r} is not a number and h, d or w, for example 7d")
    return int(match[1]) * UNITS[match[2]]


def parse_bytes(text: str) -> int:
    """`500MiB`, `50GiB`, `1.5TiB`. Raises `SpecError`."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(MiB|GiB|TiB)", text)
    if match is None:
        raise SpecError(f"max_size: {text!r} is not a number and MiB, GiB or TiB, for example 50GiB")
    return int(float(match[1]) * SIZES[match[2]])


def needless(
    home: Home, age: timedelta, run: str | None = None, most: int | None = None, readings: bool = False
) -> list[Leftover]:
    """What may go, oldest first: of one run alone, or just so much that the store has at most `most` bytes.

    Raises `SpecError` where a run's record cannot be read: what it needs is not known then, and nothing goes.
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
            raise SpecError(f"run: {run!r} is not one of this home; freescale runs lists them")
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
    """Delete what was found needless both times: a run that began in between keeps what it needs."""
    still = {(one.kind, one.name) for one in again}
    return sweep(home.store, [one for one in found if (one.kind, one.name) in still])


def run(
    home: Home, older_than: str, run_: str | None, max_size: str | None, readings: bool, delete: bool, as_json: bool
) -> None:
    """Say what would go and how much that is, or with `delete` what went."""
    age, most = parse_age(older_than), None if max_size is None else parse_bytes(max_size)
    found = needless(home, age, run_, most, readings)
    gone, left = prune(home, found, needless(home, age, run_, most, readings)) if delete else (found, [])
    counts = Counter(one.kind for one in gone)
    record = {
        "deleted": delete,
        "bytes": sum(one.bytes for one in gone),
        "counts": counts,
        "skipped": len(left),
        "store_bytes": size(home.store),
    }
    if as_json:
        typer.echo(json.dumps(record))
        return
    for kind, count in sorted(counts.items()):
        typer.echo(f"{kind:<12} {count:>6}  {_mib(sum(one.bytes for one in gone if one.kind == kind))}")
    typer.echo(f"{'gone' if delete else 'would go':<12} {len(gone):>6}  {_mib(sum(one.bytes for one in gone))}")
    if left:
        typer.echo(f"{'in use':<12} {len(left):>6}")
    if not delete and found:
        typer.echo("nothing was deleted; --delete does it")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
