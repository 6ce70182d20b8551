"""The `overnight` deployment: the jobs of a file or a watched folder, worked through within a window.

The night is one flow and its jobs are its tasks. What is done, set aside or left is in the home alone, so the next
night takes up what this one left, and the same jobs on the command line (`freescale batch`) go on where it was.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.batch.jobs_file import read_jobs
from flows.batch.notify import check_hook
from flows.batch.notify import notify as tell
from flows.batch.page import costs, night_folder, write_night
from flows.batch.runner import Night, Window
from flows.cli.terminal import Terminal
from flows.cluster.batch import Fleet, check_fleet, cluster
from flows.deployments.artifacts import Sender, picture_link
from flows.deployments.tasks import FlowState, in_task
from flows.home import Home
from stages.errors import SpecError
from stages.spec import RunOptions

if TYPE_CHECKING:
    from flows.batch.jobs_file import Ordered
    from flows.batch.runner import State


@flow(name="overnight")
def overnight(
    jobs: str | None = None,
    defaults: dict[str, Any] | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008
    until: str | None = None,
    zone: str | None = None,
    at_end: Literal["finish", "yield"] = "finish",
    skip_bad: bool = False,
    again: bool = False,
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    notify: str | None = None,
) -> dict[str, Any]:
    """Render the jobs of a file or folder until they are done or a clock in `zone` shows `until` (HH:MM).

    With no `jobs`, the folder `jobs` of the home. What is put into a folder while the night goes on is rendered too.
    `defaults` are fields of jobs that name none. A job that fails is tried twice more, then set aside; `again` takes
    those up. Bad jobs refuse the night, or with `skip_bad` are left out. The pictures also go to the folder `out`.
    With `workers` so many processes here share the jobs, with `dask` the workers of the scheduler at that address.
    `notify` is told how it ended: an http address, or TYPE/NAME of a notification block of this server. Returns
    the tally and the page of the night.
    """
    home, log = Home.find(), get_run_logger()
    check_hook(notify)
    stop = threading.Event()
    state = FlowState(stop)
    with ExitStack() as stack:
        stack.callback(state.close)
        window = Window.of(until, zone, at_end, state.due)  # a run that starts late does not work into the day
        source = Path(jobs) if jobs else home.root / "jobs"
        if jobs is None:
            source.mkdir(parents=True, exist_ok=True)
        night: Night | Fleet
        if check_fleet(dask, workers):
            client = stack.enter_context(cluster(home, dask, workers or 0))
            night = Fleet(home, options, client, stop, _folder(out), window, again, in_task, lambda: state.is_held)
        else:
            paused = home.root / "paused"
            night = Night(home, options, Terminal(quiet=True), stop, _folder(out), window, again, in_task)
            night.is_paused = lambda: state.is_held or paused.exists()
        orders: dict[str, Ordered] = {}
        states: dict[str, State] = {}
        while new := [o for o in _checked(source, home, defaults, skip_bad, log) if o.job.run not in orders]:
            log.info("%s jobs", len(new))
            orders |= {order.job.run: order for order in new}
            states |= night.run(new)
            if "left" in states.values():
                break
    page = _shown(home, tuple(orders.values()), states) if orders else None
    tell(notify, states.values(), page)
    state.end()
    return {"tally": Counter(states.values()), "page": None if page is None else str(page)}


def _checked(
    source: Path, home: Home, defaults: dict[str, Any] | None, skip_bad: bool, log: Any
) -> tuple[Ordered, ...]:
    """The jobs there are now. Raises `SpecError` where one cannot be and is not to be left out."""
    if source.is_dir() and not any(source.iterdir()):
        return ()
    found = read_jobs(source, home, defaults)
    for problem in found.problems:
        log.error("%s", problem)
    if found.problems and not (skip_bad and found.jobs):
        raise SpecError(f"jobs: {len(found.problems)} cannot be rendered, the first is {found.problems[0]}")
    return found.jobs


def _folder(out: str | None) -> Path | None:
    if out is None:
        return None
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out)


def _shown(home: Home, orders: tuple[Ordered, ...], states: dict[str, State]) -> Path:
    """Write the page, and tell the server of it; return its path."""
    page, sheet, _ = write_night(night_folder(home, orders), orders, states, home)
    sender, table = Sender(), costs(orders, states, home)
    text = f"`{page}`\n\n{picture_link('contact sheet', sheet)}"
    sender.send(lambda: create_table_artifact(table, key="overnight-costs", description=str(page)))
    sender.send(lambda: create_markdown_artifact(text, key="overnight-pictures"))
    sender.close()
    return page
