"""`freescale batch` for a person: check the jobs, work through them, say what became of each."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from flows.batch.jobs_file import read_jobs
from flows.batch.live_page import LivePage
from flows.batch.notify import check_hook, notify
from flows.batch.runner import Batch
from flows.batch.set_aside import read_set_aside
from flows.cli.console import tell_seeds
from flows.cli.terminal import Terminal
from flows.cluster.batch import ClusterBatch
from flows.cluster.connect import cluster, uses_workers
from flows.rendering.advice import remarks
from flows.rendering.files import check_out_folder
from flows.rendering.job import to_do
from flows.rendering.probing import is_open, probed
from flows.rendering.room import with_room
from stages.device import pick_device
from stages.errors import SpecError
from stages.planner.budget import check, check_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import Jobs, QueuedJob, Seeds
    from flows.batch.runner import State
    from flows.batch.window import Window
    from flows.home import Home
    from flows.rendering.job import Job
    from flows.rendering.stop import StopEvent
    from stages.spec import RunOptions

SHOWN = 20  # problems or remarks named before the rest is only counted


def checked(
    path: Path,
    home: Home,
    defaults: dict[str, Any],
    skip_bad: bool,
    root: Path | None = None,
    seeds: Seeds | None = None,
) -> Jobs:
    """The jobs of a file, every one of which can be rendered. Raises `SpecError` naming each line that cannot.

    Pictures must lie in `root`; without it, in the folder of the file.
    """
    listed = read_jobs(path, home, defaults, root, seeds)
    for problem in listed.problems[:SHOWN]:
        typer.echo(f"freescale: {problem}", err=True)
    if listed.problems and not (skip_bad and listed.jobs):
        raise SpecError(
            f"jobs: {len(listed.problems)} of {len(listed.problems) + len(listed.jobs)} cannot be rendered"
            f"{'; --skip-bad renders the others' if listed.jobs else ''}"
        )
    return listed


def checked_and_probed(
    path: Path, home: Home, defaults: dict[str, Any], skip_bad: bool, options: RunOptions, root: Path | None = None
) -> Jobs:
    """The jobs of a file as `checked` has them, planned anew where a probe had to say what a model predicts."""
    seeds: Seeds = {}
    listed = checked(path, home, defaults, skip_bad, root, seeds)
    asked = {queued.job.spec.model: queued.job for queued in listed.jobs if is_open(queued.job.plan.info)}
    for job in asked.values():
        probed(job, home, options)
    return checked(path, home, defaults, skip_bad, root, seeds) if asked else listed


def check_memory(listed: Jobs, home: Home, options: RunOptions) -> None:
    """Raise `SpecError`, before the first render, for a job that no measure makes fit the memory asked for."""
    refuse = check_tiles if options.memory is None else check  # what is free is looked at when a job's turn comes
    device = pick_device(options.device)
    for queued in listed.jobs:
        try:
            refuse(to_do(queued.job.plan, home), queued.job.plan.info, options, device)
        except SpecError as error:
            raise SpecError(f"{queued.name}: {error}") from None


def work(
    listed: Jobs,
    home: Home,
    options: RunOptions,
    window: Window,
    out: Path | None,
    again: bool,
    stop: StopEvent,
    as_json: bool,
    dask: str | None = None,
    workers: int | None = None,
    hook: str | None = None,
) -> int:
    """Work through the jobs and tell how each ended; return 0 all done, 1 some set aside, 3 some left."""
    uses_workers(dask, workers)
    check_hook(hook)
    if out is not None:
        check_out_folder("out", out)
    home.make()
    terminal = Terminal()
    terminal.say(f"{len(listed.jobs)} jobs" + (f", {listed.repeated} more are repetitions" if listed.repeated else ""))
    say_remarks(terminal, [(queued.where, queued.job) for queued in listed.jobs], options)
    if window.until is not None:
        terminal.say(f"no job is started after {window.until.astimezone():%Y-%m-%d %H:%M %Z}")
    for queued in listed.jobs:
        tell_seeds(queued.drawn, queued.where)
    with LivePage(home) as live:
        live.show(listed)
        terminal.say(f"the page is renewed while they run: {live.path}")
        states = states_of(listed.jobs, Batch(home, options, terminal, stop, out, window, again), dask, workers)
        page = _page(live, states, home, stop)
    rows = []
    for queued in listed.jobs:
        row: dict[str, Any] = {"name": queued.name, "run": queued.job.run, "state": states[queued.job.run]}
        if row["state"] == "set aside":
            row["error"] = read_set_aside(home, queued.job.run)["error"]
        terminal.say(f"{row['state']:<10} {row['name']}" + (f"  {row['error']}" if "error" in row else ""))
        rows.append(row)
    tally = Counter(row["state"] for row in rows)
    if hook is not None and not notify(hook, states.values(), page):
        terminal.say(f"notify: {hook} was not told")
    terminal.say(", ".join(f"{count} {state}" for state, count in sorted(tally.items())))
    if as_json:
        typer.echo(json.dumps({"jobs": rows, "tally": tally, "page": page and str(page)}))
    elif page is not None:
        typer.echo(page)
    return 3 if tally["left"] else 1 if tally["set aside"] else 0


def _page(live: LivePage, states: Mapping[str, State], home: Home, stop: StopEvent) -> Path | None:
    """Write the page of the end; without it the pictures are there all the same, so an error is said and not raised."""
    try:
        return with_room(lambda: live.finish(states)[0], stop, home.root)
    except Exception as error:
        typer.echo(f"freescale: the page could not be written: {type(error).__name__}: {error}", err=True)
        return None


def say_remarks(terminal: Terminal, jobs: Iterable[tuple[str, Job]], options: RunOptions) -> None:
    """Say what is worth a remark before the start, each once; of many remarks the first."""
    said = remarks(jobs, pick_device(options.device))
    for remark in said[:SHOWN]:
        terminal.say(f"note: {remark}")
    if len(said) > SHOWN:
        terminal.say(f"note: and {len(said) - SHOWN} more remarks like these")


def states_of(jobs: Sequence[QueuedJob], local: Batch, dask: str | None, workers: int | None) -> dict[str, State]:
    """Work through the jobs with the settings of a batch, here or over workers; return the state of each run."""
    if not uses_workers(dask, workers):
        return local.run(jobs)
    terminal = Terminal()
    with cluster(local.home, dask, workers or 0) as client:
        batch = ClusterBatch(local.home, local.options, client, local.stop, local.out, local.window, local.again)
        batch.wrap = _telling(terminal)
        terminal.say(f"{batch.width} workers")
        return batch.run(jobs)


def _telling(terminal: Terminal) -> Callable[[QueuedJob, Callable[[], State]], State]:
    """Say when a job begins somewhere and how it ended: the stages that workers make are not shown."""

    def announced(queued: QueuedJob, work: Callable[[], State]) -> State:
        """Do the work of a job, and say when it begins and how it ended."""
        terminal.say(f"  {queued.name}: begun")
        state = work()
        terminal.say(f"  {queued.name}: {state}")
        return state

    return announced
