"""`freescale prune` for a person: say what would be deleted, or delete it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import typer

from flows.rendering.prune import needless, parse_age, parse_max_size, prune
from storage.prune import size

if TYPE_CHECKING:
    from flows.home import Home


def run(
    home: Home, older_than: str, run_: str | None, max_size: str | None, readings: bool, delete: bool, as_json: bool
) -> None:
    """Print what would be deleted and how much that is, or with `delete` delete it and print that."""
    age, most = parse_age(older_than), None if max_size is None else parse_max_size(max_size)
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
