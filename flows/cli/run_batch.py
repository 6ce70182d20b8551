"""`freescale batch` for a person: check the jobs, work through them, say what became of each."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from flows.batch.jobs_file import read_jobs
from flows.batch.notify import check_hook, notify
from flows.batch.page import night_folder, write_night
from flows.batch.runner import Night, aside
from flows.cli.terminal import Terminal
from flows.cluster.batch import Fleet, check_fleet, cluster
from flows.rendering.session import to_do
from stages.device import pick_device
from stages.errors import SpecError
from stages.planner.budget import check, check_tiles

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from flows.batch.jobs_file import Ordered, Orders
    from flows.batch.runner import State, Window
    from flows.home import Home
    from stages.spec import RunOptions

SHOWN = 20  # problems named before the rest is only counted


def checked(path: Path, home: Home, defaults: dict[str, Any], skip_bad: bool) -> Orders:
    """The jobs of a file, every one of which can be rendered. Raises `SpecError` naming each line that cannot."""
    orders = read_jobs(path, home, defaults)
    for problem in orders.problems[:SHOWN]:
        typer.echo(f"freescale: {problem}", err=True)
    if orders.problems and not (skip_bad and orders.jobs):
        raise SpecError(
            f"jobs: {len(orders.problems)} of {len(orders.problems) + len(orders.jobs)} cannot be rendered"
            f"{'; --skip-bad renders the others' if orders.jobs else ''}"
        )
    return orders


def check_memory(orders: Orders, home: Home, options: RunOptions) -> None:
    """Raise `SpecError`, before the first render, for a job that no measure makes fit the memory asked for."""
    refuse = check_tiles if options.memory is None else check  # what is free is looked at when a job's turn comes
    device = pick_device(options.device)
    for order in orders.jobs:
        try:
            refuse(to_do(order.job.plan, home), order.job.plan.info, options, device)
        except SpecError as error:
            raise SpecError(f"{order.name}: {error}") from None


def work(
    orders: Orders,
    home: Home,
    options: RunOptions,
    window: Window,
    out: Path | None,
    again: bool,
    stop: threading.Event,
    as_json: bool,
    dask: str | None = None,
    workers: int | None = None,
    hook: str | None = None,
) -> int:
    """Work through the jobs and tell how each ended; return 0 all done, 1 some set aside, 3 some left."""
    check_fleet(dask, workers)
    check_hook(hook)
    terminal = Terminal()
    terminal.say(f"{len(orders.jobs)} jobs" + (f", {orders.repeated} more are repetitions" if orders.repeated else ""))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    states = states_of(orders.jobs, Night(home, options, terminal, stop, out, window, again), dask, workers)
    rows = []
    for order in orders.jobs:
        row: dict[str, Any] = {"name": order.name, "run": order.job.run, "state": states[order.job.run]}
        if row["state"] == "set aside":
            row["error"] = json.loads(aside(home, order.job.run).read_text(encoding="utf-8"))["error"]
        terminal.say(f"{row['state']:<10} {row['name']}" + (f"  {row['error']}" if "error" in row else ""))
        rows.append(row)
    page = write_night(night_folder(home, orders.jobs), orders.jobs, states, home)[0]
    tally = Counter(row["state"] for row in rows)
    if hook is not None and not notify(hook, states.values(), page):
        terminal.say(f"notify: {hook} was not told")
    terminal.say(", ".join(f"{count} {state}" for state, count in sorted(tally.items())))
    if as_json:
        typer.echo(json.dumps({"jobs": rows, "tally": tally, "page": str(page)}))
    else:
        typer.echo(page)
    return 3 if tally["left"] else 1 if tally["set aside"] else 0


def states_of(jobs: Sequence[Ordered], night: Night, dask: str | None, workers: int | None) -> dict[str, State]:
    """Work through the jobs as a night says, here or over workers; return each run's state."""
    if not check_fleet(dask, workers):
        return night.run(jobs)
    terminal = Terminal()
    with cluster(night.home, dask, workers or 0) as client:
        fleet = Fleet(night.home, night.options, client, night.stop, night.out, night.window, night.again)
        fleet.wrap = _telling(terminal)
        terminal.say(f"{fleet.width} workers")
        return fleet.run(jobs)


def _telling(terminal: Terminal) -> Callable[[Ordered, Callable[[], State]], State]:
    """Say when a job begins somewhere and how it ended: a fleet's stages are out of sight."""

    def told(order: Ordered, work: Callable[[], State]) -> State:
        terminal.say(f"  {order.name}: begun")
        state = work()
        terminal.say(f"  {order.name}: {state}")
        return state

    return told
