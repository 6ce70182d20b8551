"""Tables for people and JSON for scripts: runs, models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from flows.cli.console import plain_console
from stages.errors import SpecError

if TYPE_CHECKING:
    from flows.home import Home


def print_runs(home: Home, as_json: bool) -> None:
    """Every run of a home, newest first: name, state, when, attempts, picture."""
    records = list(reversed(home.runs.list()))
    if as_json:
        typer.echo(
            json.dumps([{"run": r.run, "state": r.state, "origin": r.origin, "outputs": r.outputs} for r in records])
        )
        return
    table = Table("run", "state", "created", "attempts", "picture", box=None)
    for r in records:
        table.add_row(
            r.run,
            r.state,
            f"{r.created:%Y-%m-%d %H:%M}",
            str(len(r.attempts)),
            r.outputs[0] if r.outputs else "",
        )
    plain_console(width=200).print(table)


def print_run(home: Home, run: str, as_json: bool) -> None:
    """One run: spec, stages, attempts and pictures. Raises `SpecError` for a name that is none."""
    record = home.record(run)
    spec = record.spec
    stages = [
        {"stage": c.stage, "level": c.level, "key": c.key, "done": home.store.find(c.key) is not None}
        for c in record.plan
    ]
    if as_json:
        typer.echo(json.dumps({**record.model_dump(mode="json"), "stages": stages}))
        return
    console = plain_console(width=200)
    console.print(
        f"{record.run}: {record.state}" + (f", from {record.origin} at {record.origin_stage}" if record.origin else "")
    )
    if record.error:
        console.print(f"  {record.error}")
    video = "" if spec.get("frames") is None else f", {spec['frames']} frames at {spec['fps']} a second"
    console.print(f"  {spec['width']}x{spec['height']}{video}, seed {spec['seed']}: {spec['prompt']}")
    for s in stages:
        console.print(f"  {s['stage']:<16} {s['level']}  {str(s['key'])[:8]}  {'done' if s['done'] else 'to do'}")
    for a in record.attempts:
        end = f"{a.finished:%H:%M:%S}" if a.finished else "…"
        console.print(f"  attempt {a.started:%Y-%m-%d %H:%M:%S} to {end} on {a.host}: {a.state}")
    for output in record.outputs:
        console.print(f"  {output}")
    if record.state != "done":
        console.print(f"  go on with: freescale resume {record.run}")


def print_models(home: Home, as_json: bool) -> None:
    """Every model that can be named, with its training size, steps and folder, or what is wrong with it."""
    from stages.models.load import available, describe
    from stages.spec import ModelSpec

    rows = []
    for name, folder in available(home.root):
        try:
            info = describe(ModelSpec(name=name), home.root)
            height, width = info.native
            rows.append(
                {
                    "name": name,
                    "folder": str(folder),
                    "native": f"{width}x{height}",
                    "frames": info.frames,
                    "steps": info.steps,
                    "error": None,
                }
            )
        except SpecError as error:
            rows.append(
                {"name": name, "folder": str(folder), "native": "", "frames": None, "steps": 0, "error": str(error)}
            )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("model", "trained at", "steps", "folder", box=None)
    for r in rows:
        trained = f"{r['native']}, {r['frames']} frames" if r["frames"] else str(r["native"])
        table.add_row(str(r["name"]), trained, str(r["steps"]), str(r["error"] or r["folder"]))
    plain_console(width=200).print(table)
