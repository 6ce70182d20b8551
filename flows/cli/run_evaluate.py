"""`freescale evaluate`: flags over a spec file -> a checked evaluation, run here with signals as an orderly stop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows.cli.flags import grid_values
from flows.cli.run_batch import say_remarks
from flows.cli.terminal import Terminal
from flows.cluster.connect import uses_workers
from flows.cluster.pool import open_pool
from flows.evaluate.layout import prepare_evaluation
from flows.evaluate.readings import cells, read_all, unread
from flows.evaluate.readings_file import ReadingsFile
from flows.evaluate.report import as_json, as_markdown, check_out, write
from flows.home import Home
from flows.rendering.files import check_out_folder
from flows.rendering.session import Session
from stages.metrics.spec import EvaluationSpec, make_evaluation
from stages.runner import Interrupted
from stages.spec import RunOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.evaluate.layout import Picture
    from flows.rendering.stop import StopEvent


def evaluation_from(what: Path | None, flags: dict[str, Any]) -> EvaluationSpec:
    """The spec of a file, or the defaults, with flags laid over it. Raises `SpecError`."""
    values, written = grid_values(what, flags)
    if flags.get("metric"):
        values["metrics"] = list(flags["metric"])
    values |= {name: flags[name] for name in ("extractor", "resize") if flags.get(name) is not None}
    if flags.get("reference") is not None:
        values["reference"] = {"protocol": "real", "folder": flags["reference"]}
    if flags.get("protocol") is not None:
        given = values.get("reference", {})
        kept = given if isinstance(given, dict) and given.get("protocol") == flags["protocol"] else {}
        values["reference"] = kept | {"protocol": flags["protocol"]}
    with written.located():
        return make_evaluation(values)


def run(
    spec: EvaluationSpec, home: Home, options: RunOptions, stop: StopEvent, out: Path | None, overwrite: bool,
    only_plan: bool, as_object: bool, dask: str | None = None, workers: int | None = None, kept: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Render, read, score, write and print. Exits with 3 when asked to stop; typed again it goes on."""
    uses_workers(dask, workers)
    evaluation = prepare_evaluation(spec, home)
    folder = out or home.root / "evaluations" / evaluation.name
    check_out(folder, evaluation, overwrite)
    if not only_plan:
        check_out_folder("out", folder)
    home.make()
    file = ReadingsFile(tuple(kept))
    terminal = Terminal()
    if not only_plan and (taken := file.take(evaluation, home.store)):
        terminal.say(f"{taken} readings taken over")
    held = file.keys()
    total, left = len(evaluation.pictures), sum(unread(p, home.store, held) for p in evaluation.pictures)
    terminal.say(f"{evaluation.name}: {total} {evaluation.kind}s, {left} to read")
    jobs = ((picture.group, picture.job) for picture in evaluation.pictures if picture.job is not None)
    say_remarks(terminal, jobs, options)
    if only_plan:
        if as_object:
            typer.echo(json.dumps({"evaluation": evaluation.name, "pictures": total, "to_read": left}))
        return
    session = Session(home, options, Terminal(quiet=True), stop)
    try:
        with open_pool(home, stop, dask, workers) as pool:
            readings = read_all(evaluation, session, told=_Told(terminal, total, left), pool=pool)
    except (Interrupted, KeyboardInterrupt) as stopped:
        terminal.say(f"{stopped or 'stopped'}; typed again, the evaluation goes on")
        raise typer.Exit(3) from None
    finally:
        file.add(evaluation, home.store)
    found = list(cells(evaluation, readings))
    files = write(folder, evaluation, found, readings)
    for picture, why in readings.failed.items():
        terminal.say(f"left out: {picture.name}: {why}")
    terminal.say(" ".join(str(path) for path in files))
    typer.echo(as_markdown(evaluation, found))
    if as_object:
        rows = as_json(evaluation, found, readings)["rows"]
        typer.echo(json.dumps({"evaluation": evaluation.name, "rows": rows, "files": [str(f) for f in files]}))


class _Told:
    """A line every few seconds: pictures done and minutes left, from those made in this process."""

    EVERY = 5.0  # seconds

    def __init__(self, terminal: Terminal, total: int, left: int) -> None:
        self.terminal, self.total, self.left = terminal, total, left
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, picture: Picture) -> None:
        now = time.monotonic()
        if now - self.said >= self.EVERY or done == self.total:
            self.said = now
            behind = max(done - (self.total - self.left), 0)
            minutes = (now - self.began) / behind * (self.total - done) / 60 if behind else None
            told = "" if minutes is None else f", about {minutes:.0f} min left"
            self.terminal.say(f"  {done} of {self.total}  {picture.name}{told}")
