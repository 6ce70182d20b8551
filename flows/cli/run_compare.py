"""`freescale compare` for a person: check, render, write the page, say what became of each picture."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import typer

from flows.batch.runner import Batch
from flows.cli.run_batch import say_remarks, states_of
from flows.cli.terminal import Terminal
from flows.cluster.connect import uses_workers
from flows.compare.layout import prepare_comparison
from flows.compare.page import check_out, write
from flows.rendering.files import check_out_folder

if TYPE_CHECKING:
    from pathlib import Path

    from flows.home import Home
    from flows.rendering.stop import StopEvent
    from stages.metrics.grid import GridSpec
    from stages.spec import RunOptions


def run(
    spec: GridSpec, home: Home, options: RunOptions, stop: StopEvent, out: Path | None, overwrite: bool,
    again: bool, as_object: bool, dask: str | None = None, workers: int | None = None,
) -> int:  # fmt: skip
    """Render what is not there and write the page; return 0 all shown, 1 some set aside, 3 stopped before the end."""
    uses_workers(dask, workers)
    comparison = prepare_comparison(spec, home)
    folder = out or home.root / "comparisons" / comparison.name
    check_out(folder, comparison, overwrite)
    check_out_folder("out", folder)
    home.make()
    terminal = Terminal()
    terminal.say(f"{comparison.name}: {len(comparison.rows)} rows of {len(spec.methods)} pictures")
    say_remarks(terminal, [("", queued.job) for queued in comparison.jobs], options)
    states = states_of(comparison.jobs, Batch(home, options, terminal, stop, again=again), dask, workers)
    files = write(folder, comparison, states, home)
    for queued in comparison.jobs:
        if states[queued.job.run] != "done":
            terminal.say(f"{states[queued.job.run]:<10} {queued.name}")
    tally = Counter(states.values())
    terminal.say(", ".join(f"{count} {state}" for state, count in sorted(tally.items())))
    if tally["left"]:
        terminal.say("typed again, the comparison goes on")
    if as_object:
        told = {"comparison": comparison.name, "tally": tally, "files": [str(path) for path in files]}
        typer.echo(json.dumps(told))
    else:
        typer.echo(files[0])
    return 3 if tally["left"] else 1 if tally["set aside"] else 0
