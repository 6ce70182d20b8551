"""Tables for people and JSON for scripts: plans, runs, models."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from stages.estimate import disk_bytes, memory_bytes, work_of
from stages.models import available, describe, pick_device
from stages.runner import device_name, key_of
from stages.spec import ModelSpec, SpecError
from storage import Checkpoints

if TYPE_CHECKING:
    from flows.session import Home, Job
    from stages.plan import Call
    from stages.spec import RenderSpec
    from storage import Manifest, RunRecord


def print_plan(job: Job, home: Home, device: str, why: bool, as_json: bool) -> None:
    """Every stage of a render: reused, resumable or to do, with size, steps, seconds, memory and disk."""
    pace = _Pace(home, device_name(pick_device(device)))
    rows = [_plan_row(call, home, pace, why) for call in job.plan.calls]
    total = {
        "run": job.run,
        "levels": [f"{w}x{h}" for h, w in job.plan.sizes],
        "stages": rows,
        "seconds": pace.total([r for r in rows if r["state"] != "reused"]),
        "memory_bytes": max((r["memory_bytes"] for r in rows if r["state"] != "reused"), default=0),
        "disk_bytes": sum(r["disk_bytes"] for r in rows if r["state"] != "reused"),
    }
    if as_json:
        typer.echo(json.dumps(total))
        return
    table = Table("stage", "level", "size", "steps", "fingerprint", "state", "seconds", "memory", "disk", box=None)
    for r in rows:
        seconds = "" if r["state"] == "reused" else "?" if r["seconds"] is None else f"{r['seconds']:.1f}"
        steps = f"{r['steps'][0]}-{r['steps'][1]}" if r["steps"][1] else ""
        table.add_row(
            r["stage"],
            str(r["level"]),
            r["size"],
            steps,
            r["key"][:8],
            r["state"],
            seconds,
            _size(r["memory_bytes"]),
            _size(r["disk_bytes"]),
        )
    console = Console(highlight=False, soft_wrap=True, width=160)
    console.print(f"{job.run}: {' -> '.join(total['levels'])}")
    console.print(table)
    for r in rows:
        if r.get("why"):
            console.print(f"  {r['stage']} {r['level']}: {r['why']}")
    left = "unknown until a first render on this device" if total["seconds"] is None else f"{total['seconds']:.0f} s"
    console.print(
        f"to do: {left}, about {_size(total['memory_bytes'])} of memory, {_size(total['disk_bytes'])} of disk"
    )


def _plan_row(call: Call, home: Home, pace: _Pace, why: bool) -> dict[str, Any]:
    key, (height, width) = key_of(call), call.size
    state = "reused" if home.store.find(key) is not None else "to do"
    if state == "to do" and (steps := Checkpoints(home.store, key).steps()):
        state = f"resumes at step {steps[0] + 1}"
    row: dict[str, Any] = {
        "stage": call.stage.name,
        "level": call.level,
        "size": f"{width}x{height}",
        "steps": call.stage.span,
        "key": key,
        "state": state,
        "seconds": pace.seconds(call),
        "memory_bytes": memory_bytes(call),
        "disk_bytes": disk_bytes(call),
    }
    if why and state != "reused":
        row["why"] = pace.difference(call)
    return row


class _Pace:
    """What earlier artifacts tell: seconds for a unit of work on this device, and what they were made from."""

    def __init__(self, home: Home, device: str) -> None:
        found = [home.store.find(key) for key in home.store.list_keys()]
        self.made: list[Manifest] = [m for m in found if m is not None]
        rates: dict[str, list[float]] = {}
        for manifest in self.made:
            if manifest.device == device and manifest.seconds and not manifest.resumed_at:
                rates.setdefault(manifest.stage, []).append(manifest.seconds / work_of(dict(manifest.params)))
        self.rates = {stage: statistics.median(values) for stage, values in rates.items()}

    def seconds(self, call: Call) -> float | None:
        rate = self.rates.get(call.stage.name)
        return None if rate is None else rate * work_of(call.stage.params())

    def total(self, rows: list[dict[str, Any]]) -> float | None:
        known = [r["seconds"] for r in rows]
        return None if any(s is None for s in known) else sum(known)

    def difference(self, call: Call) -> str:
        """The fields that differ from the nearest artifact of the same stage and level."""
        wanted = {
            **_flat(call.stage.params()),
            **{f"parent {r}": key_of(p) for r, p in call.parents.items()},
            "model": call.model,
        }
        nearest: list[str] | None = None
        for manifest in self.made:
            if manifest.stage == call.stage.name and manifest.level == call.level:
                had = {
                    **_flat(dict(manifest.params)),
                    **{f"parent {r}": k for r, k in manifest.parents.items()},
                }
                names = [n for n in {**wanted, **had} if wanted.get(n) != had.get(n) and (wanted.get(n) or had.get(n))]
                changed = [
                    n if n.startswith("parent") else f"{n} {had.get(n)!r} -> {wanted.get(n)!r}" for n in sorted(names)
                ]
                if nearest is None or len(changed) < len(nearest):
                    nearest = changed
        return "never made before" if nearest is None else "; ".join(nearest) or "was set aside"


def _flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if name == "provenance":
            continue  # the spec, which the other fields tell of
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def print_runs(home: Home, as_json: bool) -> None:
    """Every run, newest first."""
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
    Console(highlight=False, soft_wrap=True, width=200).print(table)


def print_run(record: RunRecord, spec: RenderSpec, home: Home, as_json: bool) -> None:
    """One run whole."""
    stages = [
        {"stage": c.stage, "level": c.level, "key": c.key, "done": home.store.find(c.key) is not None}
        for c in record.plan
    ]
    if as_json:
        typer.echo(json.dumps({**record.model_dump(mode="json"), "stages": stages}))
        return
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(
        f"{record.run}: {record.state}" + (f", from {record.origin} at {record.origin_stage}" if record.origin else "")
    )
    if record.error:
        console.print(f"  {record.error}")
    clip = "" if spec.frames is None else f", {spec.frames} frames at {spec.fps} a second"
    console.print(f"  {spec.width}x{spec.height}{clip}, seed {spec.seed}: {spec.prompt}")
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
    """Every model that can be named."""
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
    Console(highlight=False, soft_wrap=True, width=200).print(table)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
