"""`freescale render`, `resume` and `redo` for a person: render a job with its progress, or deliver what is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows.cli.terminal import Terminal
from flows.cluster.connect import uses_workers
from flows.cluster.fanout import open_fanout
from flows.rendering.advice import remarks
from flows.rendering.export import target_path
from flows.rendering.probing import probed
from flows.rendering.session import Session
from flows.rendering.stop import stop_on_signals
from flows.rendering.stored import StoredRun
from stages.device import pick_device
from stages.runner import Interrupted

if TYPE_CHECKING:
    from flows.cli.options import Output, Sharing
    from flows.home import Home
    from flows.rendering.job import Job
    from flows.rendering.session import Result
    from stages.spec import RunOptions


def go_on(
    found: Job | StoredRun,
    home: Home,
    options: RunOptions,
    sharing: Sharing,
    output: Output,
    as_json: bool,
    first: Path | None = None,
) -> None:
    """Render what a run has left to do, or deliver its stored files: to `first` where no other place is named."""
    output = replace(output, out=output.out or first)
    if not isinstance(found, StoredRun):
        run(found, home, options, sharing, output, as_json)
        return
    terminal = Terminal()
    result = found.result(home, output.out or Path.cwd(), output.overwrite)
    terminal.say(f"{found.run}: done before, from the store; its model or a picture of it is not there as it was")
    _tell(terminal, result, as_json)


def run(
    job: Job,
    home: Home,
    options: RunOptions,
    sharing: Sharing,
    output: Output,
    as_json: bool,
    name: str | None = None,
) -> None:
    """Render, checkpoint and exit with 3 when a signal asks to stop, and print how it went.

    `name` is that of the picture's file in a folder; None: the run's.
    """
    uses_workers(sharing.dask, sharing.workers)
    job = probed(job, home, options)
    last = job.plan.exports[-1]
    out = target_path(output.out or Path.cwd(), name or job.run, last.stage, last.key, home, output.overwrite)
    home.make()
    terminal = Terminal()
    session = Session(home, options, terminal, stop_on_signals())
    terminal.say(f"{job.run}: {' -> '.join(f'{w}x{h}' for h, w in job.plan.sizes)} with {job.spec.method.name}")
    for remark in remarks([("", job)], pick_device(options.device)):
        terminal.say(f"note: {remark}")
    terminal.begin(job.plan)
    try:
        with open_fanout(home, options, session.stop, sharing.dask, sharing.workers) as session.helpers:
            result = session.render(job, out, output.overwrite)
    except (Interrupted, KeyboardInterrupt) as stopped:
        terminal.end()
        terminal.say(f"{stopped or 'stopped'}; go on with: freescale resume {job.run}")
        raise typer.Exit(3) from None
    finally:
        terminal.end()
    _tell(terminal, result, as_json)


def _tell(terminal: Terminal, result: Result, as_json: bool) -> None:
    """Print where the picture is, and with `as_json` the result as an object."""
    terminal.say(f"{result.outputs[0]}  {result.seconds:.1f} s  pixels {result.pixels_sha256[:16]}")
    if as_json:
        typer.echo(json.dumps(result.as_json()))
