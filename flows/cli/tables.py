"""Tables for people and JSON for scripts: runs, methods."""

from __future__ import annotations

import dataclasses
import json
import typing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from flows.cli.console import plain_console
from flows.rendering.adapters import adapter_line, recorded_adapters
from flows.rendering.live import progress_of
from flows.rendering.states import STATES, attempts_of, state_of
from stages.errors import SpecError, not_one_of

if TYPE_CHECKING:
    from flows.home import Home
    from storage import RunRecord

WIDE = 10_000  # columns: a row is one line, however long its path is


def print_runs(
    home: Home, as_json: bool, limit: int | None = None, state: str | None = None, since: timedelta | None = None,
    made_too: bool = False,
) -> None:  # fmt: skip
    """The runs of a home, newest first: name, state, when, attempts, picture; how many are left out, and why.

    At most `limit`, only those whose state begins with `state`, and those created less than `since` ago. Those that
    evaluations asked for are shown with `made_too` alone.
    """
    every = [(record, state_of(record)) for record in reversed(home.runs.list())]
    if state is not None and state not in STATES:
        raise SpecError(f"state: {not_one_of(state, STATES)}")
    begin = None if since is None else datetime.now(UTC) - since
    wanted = [
        (record, now)
        for record, now in every
        if (state is None or now.startswith(state)) and (begin is None or record.created >= begin)
    ]
    shown = [(record, now) for record, now in wanted if made_too or record.made_for is None][:limit]
    if as_json:
        rows = [
            {"run": r.run, "state": now, "progress": _progress(home, r), "origin": r.origin, "outputs": r.outputs}
            for r, now in shown
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table("run", "state", "created", "attempts", "picture", box=None)
    for record, now in shown:
        picture = record.outputs[0] if record.outputs else ""
        created = f"{record.created.astimezone():%Y-%m-%d %H:%M}"
        at = progress_of(home, record)
        table.add_row(record.run, now if at is None else f"{now}: {at}", created, str(len(record.attempts)), picture)
    plain_console(width=WIDE).print(table)
    made = sum(record.made_for is not None for record, _ in wanted)
    if made and not made_too:
        typer.echo(f"{made} more were made for evaluations; --all shows them", err=True)


def print_run(home: Home, run: str, as_json: bool) -> None:
    """One run: spec, stages, attempts and pictures. Raises `SpecError` for a name that is none."""
    record = home.record(run)
    spec = record.spec
    stages = [
        {"stage": c.stage, "level": c.level, "key": c.key, "done": home.store.find(c.key) is not None}
        for c in record.plan
    ]
    if as_json:
        now: dict[str, Any] = {"state": state_of(record), "progress": _progress(home, record)}
        if adapters := recorded_adapters(spec, home.root):
            now["adapters"] = adapters
        typer.echo(json.dumps({**record.model_dump(mode="json"), **now, "stages": stages}))
        return
    console = plain_console(width=WIDE)
    console.print(
        f"{record.run}: {state_of(record)}"
        + (f", from {record.origin} at {record.origin_stage}" if record.origin else "")
    )
    if (at := progress_of(home, record)) is not None:
        console.print(f"  {at}, {at.percent:.0f} % done at {at.at.astimezone():%H:%M:%S} on {at.host}")
    if record.error:
        console.print(f"  {record.error}")
    video = "" if spec.get("frames") is None else f", {spec['frames']} frames at {spec['fps']} a second"
    console.print(f"  {spec['width']}x{spec['height']}{video}, seed {spec['seed']}: {spec['prompt']}")
    for adapter in recorded_adapters(spec, home.root):
        console.print(f"  {adapter_line(adapter)}")
    for s in stages:
        console.print(f"  {s['stage']:<16} {s['level']}  {str(s['key'])[:8]}  {'done' if s['done'] else 'to do'}")
    for a in attempts_of(record):
        end = f"{a.finished:%H:%M:%S}" if a.finished else "…"
        how = "lost: its process died" if a.state == "lost" else a.error or a.state
        console.print(f"  attempt {a.started:%Y-%m-%d %H:%M:%S} to {end} on {a.host}: {how}")
        for remark in a.remarks:
            console.print(f"    {remark}")
    for output in record.outputs:
        console.print(f"  {output}")
    if record.state != "done":
        console.print(f"  go on with: freescale resume {record.run}")


def _progress(home: Home, record: RunRecord) -> dict[str, Any] | None:
    """Where a run is now, for scripts; None where nobody works on it."""
    at = progress_of(home, record)
    return None if at is None else at.model_dump(mode="json")


def print_methods(as_json: bool) -> None:
    """Every method with its parameters, and every ablation with what it sets."""
    from freescale import METHODS
    from freescale.methods.ablations import CHANGES

    rows = {
        name: {
            one.name: {"type": _kind(typing.get_type_hints(method)[one.name]), "default": one.default}
            for one in dataclasses.fields(method)
        }
        for name, method in METHODS.items()
    }
    if as_json:
        typer.echo(json.dumps({"methods": rows, "ablations": CHANGES}))
        return
    for name, parameters in rows.items():
        typer.echo(f"{name}: {(METHODS[name].__doc__ or '').splitlines()[0]}")
        for parameter, about in parameters.items():
            typer.echo(f"  --{parameter.replace('_', '-'):<20} {about['type']}, default {_shown(about['default'])}")
    for name, changes in CHANGES.items():
        typer.echo(f"{name}: " + ", ".join(f"--{k.replace('_', '-')} {_shown(v)}" for k, v in changes.items()))


def _kind(hint: Any) -> str:
    """A type in words: the choices, or the kind of number."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, parts))
    if typing.get_origin(hint) is tuple:
        return ",".join(_kind(part) for part in parts)
    words = {bool: "true or false", int: "whole number", float: "number", type(None): "none"}
    return " or ".join(_kind(part) for part in parts) or words.get(hint, str(hint))


def _shown(value: object) -> str:
    """A parameter's value as it is typed after its option."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
