"""What `freescale plan` says: every stage with its state, savings, memory, seconds and disk, and the sums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from flows.cli.console import plain_console
from flows.rendering.adapters import adapter_line, planned_adapters
from flows.rendering.advice import remarks
from flows.rendering.job import to_do
from flows.rendering.throughput import Throughput
from stages.device import planned_device
from stages.planner.amounts import show_bytes
from stages.planner.budget import PARTS, check, fit, free_bytes
from stages.planner.estimate import call_flops, estimate
from stages.planner.trace_cache import trace_cache
from storage import Checkpoints

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.call import Call
    from stages.planner.budget import Fit
    from stages.spec import RunOptions
    from storage import Manifest


def print_plan(job: Job, home: Home, options: RunOptions, why: bool, as_json: bool) -> None:
    """Print every stage of a render: reused, resumable or to do, and what it costs under the options.

    With `as_json` one JSON object is printed. Raises `SpecError` where `memory` was named and cannot suffice.
    """
    with trace_cache(home.root / "cache" / "traces.json"):
        total = planned(job, home, options, why)
    if as_json:
        typer.echo(json.dumps(total))
    else:
        _print(job.run, total, total["stages"])


def planned(job: Job, home: Home, options: RunOptions, why: bool = False) -> dict[str, Any]:
    """What `freescale plan --json` prints. Raises `SpecError` where `memory` was named and cannot suffice."""
    device = planned_device(options.device)
    left = to_do(job.plan, home)
    if options.memory is not None:
        check(left, job.plan.info, options, device)
    planner = _Planner(job, home, options)
    rows = [planner.row(call, call in left, why) for call in job.plan.calls]
    pending = [r for r in rows if r["state"] != "reused"]
    known = [r["seconds"] for r in pending if r["seconds"] is not None]
    adapters = planned_adapters(job)
    return {
        "run": job.run,
        **({"adapters": adapters} if adapters else {}),
        "levels": [f"{w}x{h}" for h, w in job.plan.sizes],
        "device": str(device),
        "memory_budget_bytes": planner.budget,
        "stages": rows,
        "seconds": sum(known) if known or not pending else None,
        "seconds_basis": "measured" if all(r["seconds_basis"] == "measured" for r in pending) else "assumed",
        "unet_calls": planner.unet_calls(rows),
        "flops": sum(r["flops"] for r in rows),
        "memory_bytes": max((r["memory_bytes"] for r in pending), default=0),
        "disk_bytes": sum(r["disk_bytes"] for r in pending),
        "fits": all(r["fits"] for r in pending),
        "notes": remarks([("", job)], device),
    }


def _print(run: str, total: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table("stage", "level", "size", "steps", "fingerprint", "state", "seconds", "memory", "disk", box=None)
    for r in rows:
        mark = "~" if r["seconds_basis"] == "assumed" else ""
        seconds = "" if r["state"] == "reused" else "?" if r["seconds"] is None else f"{mark}{r['seconds']:.1f}"
        steps = f"{r['steps'][0]}-{r['steps'][1]}" if r["steps"][1] else ""
        amounts = (show_bytes(r["memory_bytes"]), show_bytes(r["disk_bytes"]))
        table.add_row(r["stage"], str(r["level"]), r["size"], steps, r["key"][:8], r["state"], seconds, *amounts)
    console = plain_console(width=160)
    console.print(f"{run}: {' -> '.join(total['levels'])}")
    console.print(table)
    for r in rows:
        where = f"  {r['stage']} {r['level']}: "
        if r.get("why"):
            console.print(where + r["why"])
        if r["savings"] and r["state"] != "reused":
            console.print(where + ", ".join(r["savings"]))
        if not r["fits"] and r["state"] != "reused":
            console.print(f"{where}does not fit in {show_bytes(total['memory_budget_bytes'])}")
    for adapter in total.get("adapters", ()):
        console.print(adapter_line(adapter))
    for note in total["notes"]:
        console.print(f"note: {note}")
    if total["unet_calls"]:
        calls = f"{total['unet_calls']:.{0 if total['unet_calls'] >= 100 else 1}f}"
        console.print(f"in all: {calls} UNet calls of the training size, {total['flops'] / 1e12:,.1f} TFLOP")
    assumed = " (~ from a matmul rate, until a first render on this device)"
    seconds = "unknown" if total["seconds"] is None else f"{total['seconds']:.0f} s"
    seconds += assumed if total["seconds_basis"] == "assumed" and total["seconds"] else ""
    console.print(
        f"to do: {seconds}, {show_bytes(total['memory_bytes'])} of memory on {total['device']}, "
        f"{show_bytes(total['disk_bytes'])} of disk"
    )


class _Planner:
    """What is the same for all rows of a plan."""

    def __init__(self, job: Job, home: Home, options: RunOptions) -> None:
        self.job, self.home, self.info, self.options = job, home, job.plan.info, options
        self.device = planned_device(options.device)
        self.budget = options.memory or free_bytes(self.device)
        found = [home.store.find(key) for key in home.store.list_keys()]
        self.made = [m for m in found if m is not None]
        self.pace = Throughput(home, self.info, options.device, self.made)

    def row(self, call: Call, is_left: bool, why: bool) -> dict[str, Any]:
        """Return what the plan says of one call: state, steps, seconds, bytes, savings, and with `why` what differs."""
        key, (height, width) = call.key, call.size
        state = "to do" if is_left or self.home.store.find(key) is None else "reused"
        if state == "to do" and (steps := Checkpoints(self.home.store, key).steps()):
            state = f"resumes at step {steps[0] + 1}"
        found = self._fit(call)
        expected = estimate(call, self.info, self.options, self.device.type) if found is None else found.estimate
        took = self.pace.seconds(call, expected)
        row: dict[str, Any] = {
            "stage": call.stage.name,
            "level": call.level,
            "size": f"{width}x{height}",
            "steps": call.stage.span,
            "key": key,
            "state": state,
            "seconds": None if took is None else took.seconds,
            "seconds_basis": None if took is None else took.basis,
            "memory_bytes": expected.memory,
            "weights_bytes": expected.weights,
            "flops": expected.flops,
            "disk_bytes": expected.disk,
            "savings": [] if found is None else list(found.savings),
            "fits": found is None or found.fits,
        }
        if why and state != "reused":
            row["why"] = difference(call, self.made)
        return row

    def unet_calls(self, rows: list[dict[str, Any]]) -> float | None:
        """Return what all UNet work comes to in calls at the training size; None for a render without a UNet."""
        calls = self.job.plan.calls
        one = call_flops(calls, self.info, self.options)
        flops = sum(row["flops"] for row, call in zip(rows, calls, strict=True) if call.stage.part == "unet")
        return flops / one if one else None

    def _fit(self, call: Call) -> Fit | None:
        return fit(call, self.info, self.options, self.budget, self.device.type) if call.stage.part in PARTS else None


def difference(call: Call, made: list[Manifest]) -> str:
    """The fields that differ from the nearest artifact of the same stage and level."""
    wanted = {
        **_flat(call.stage.params()),
        **{f"parent {r}": p.key for r, p in call.parents.items()},
        "model": call.model,
    }
    nearest: list[str] | None = None
    for manifest in made:
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
