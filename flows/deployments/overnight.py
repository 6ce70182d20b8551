"""The `overnight` deployment: the jobs of a file or a watched folder, worked through within a window.

The batch is one flow and its jobs are its tasks. The home alone says which jobs are done, set aside or left. So the
next night takes up what this one left, and so does `freescale batch` when it is given the jobs.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State as PrefectState
from prefect.states import Cancelled, Completed, Failed

from flows.batch.jobs_file import Jobs, Seeds, read_jobs
from flows.batch.live_page import LivePage
from flows.batch.notify import check_hook
from flows.batch.notify import notify as send_notification
from flows.batch.page import costs
from flows.batch.runner import Batch
from flows.batch.window import Window
from flows.cluster.batch import ClusterBatch
from flows.cluster.connect import cluster, uses_workers
from flows.deployments.artifacts import Sender, picture_link
from flows.deployments.restarts import Crashed, first_due, log_crashes
from flows.deployments.running import RunningJobs
from flows.deployments.tasks import FlowState, in_task
from flows.home import Home, user_path
from flows.rendering.room import with_room
from flows.rendering.stop import StopEvent
from stages.errors import SpecError
from stages.observer import NullObserver
from stages.spec import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    input_root: str | None = None,
    crashed: Crashed = (),
) -> dict[str, Any] | PrefectState[Any]:
    """Render the jobs of a file or folder until they are done or a clock in `zone` shows `until` (HH:MM).

    Without `jobs`, the folder `jobs` of the home is taken. Jobs that are put into a folder while others run are
    rendered too. `defaults` are fields of jobs that do not name them. Pictures that a file names must lie in its
    folder, or in `input_root`. A job that fails is tried twice more, then set aside; `again` takes up those that were.
    A job that cannot be rendered refuses the batch, or with `skip_bad` is left out. The pictures also go to the folder
    `out`. The jobs are shared by `workers` processes of this machine, or by the workers of the Dask scheduler at
    `dask`. `notify` is told how the batch ended: an http address, or TYPE/NAME of a notification block of this server.
    Returns the number of jobs by state, and the path of the page; the flow run ends as `Incomplete`, which is failed,
    where jobs were set aside or left out, and as `Jobs left` where some wait.
    """
    home, log, stop = Home.find(), get_run_logger(), StopEvent()
    check_hook(notify)
    log_crashes(log, crashed)
    with closing(FlowState(stop)) as state:
        # a run that starts late, or again after a crash, does not work into the day
        window = Window.of(until, zone, at_end, first_due(crashed, state.due))
        source, seeds = user_path(jobs or home.root / "jobs"), Seeds()
        if jobs is None:
            source.mkdir(parents=True, exist_ok=True)
        fields = {"stop": stop, "out": _folder(out), "window": window, "again": again, "wrap": in_task}
        with LivePage(home) as live:
            with (
                closing(RunningJobs(home, lambda: live.jobs)),
                _open_batch(home, options, state, dask, workers, **fields) as batch,
            ):
                read = partial(read_jobs, source, home, defaults, user_path(input_root) if input_root else None, seeds)
                states = _work_off(batch, lambda: live.show(_checked(source, read, skip_bad, log)), log)
            page = _last_page(live, home, states, stop, log)
    send_notification(notify, states.values(), page)
    state.end()
    return _ended(
        {"tally": Counter(states.values()), "page": None if page is None else str(page)}, len(live.left_out), stop
    )


def _ended(result: dict[str, Any], left_out: int, stop: StopEvent) -> dict[str, Any] | PrefectState[Any]:
    """The result of a complete batch, else the state that says what is missing."""
    tally = Counter(result["tally"], **({"left out": left_out} if left_out else {}))
    message = ", ".join(f"{count} {state}" for state, count in sorted(tally.items())) + f"; page: {result['page']}"
    if stop.why == "cancelled":
        return Cancelled(message=message)
    if tally["set aside"] or left_out:
        return Failed(name="Incomplete", message=message)
    if tally["left"]:
        return Completed(name="Jobs left", message=message, data=result)
    return result


@contextmanager
def _open_batch(
    home: Home, options: RunOptions, state: FlowState, dask: str | None, workers: int | None, **fields: Any
) -> Iterator[Batch | ClusterBatch]:
    """A batch in this process or over workers; it pauses with the flow run, and with the home."""
    if uses_workers(dask, workers):
        with cluster(home, dask, workers or 0) as client:
            yield ClusterBatch(home, options, client, is_paused=lambda: state.is_held, **fields)
    else:
        pause_file = home.root / "paused"
        yield Batch(home, options, NullObserver(), is_paused=lambda: state.is_held or pause_file.exists(), **fields)


def _work_off(batch: Batch | ClusterBatch, read: Callable[[], Jobs], log: Any) -> dict[str, State]:
    """Run the jobs that `read` gives, and again those that are new since, until there are none or a job is left."""
    states: dict[str, State] = {}
    while new := [queued for queued in read().jobs if queued.job.run not in states]:
        log.info("%s jobs", len(new))
        states |= batch.run(new)
        if "left" in states.values():
            break
    return states


def _checked(source: Path, read: Callable[[], Jobs], skip_bad: bool, log: Any) -> Jobs:
    """The jobs that `read` finds in `source` now.

    Raises `SpecError` for one that cannot be rendered, unless `skip_bad`.
    """
    if source.is_dir() and not any(source.iterdir()):
        return Jobs((), (), 0)
    found = read()
    for problem in found.problems:
        log.error("%s", problem)
    if found.problems and not (skip_bad and found.jobs):
        raise SpecError(f"jobs: {len(found.problems)} cannot be rendered, the first is {found.problems[0]}")
    return found


def _folder(out: str | None) -> Path | None:
    if out is None:
        return None
    folder = user_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last_page(live: LivePage, home: Home, states: dict[str, State], stop: StopEvent, log: Any) -> Path | None:
    """Write the page of the end and send its table and contact sheet; return the page's path, None without one."""
    if not states:
        return None
    try:
        page, sheet, _ = with_room(lambda: live.finish(states), stop, home.root)
    except Exception as error:  # without it the pictures are there all the same
        log.error("the page could not be written: %s: %s", type(error).__name__, error)
        return None
    sender, table = Sender(), costs(live.jobs, states, home)
    sender.send(lambda: create_table_artifact(table, key="overnight-costs", description=str(page)))
    text = f"`{page}`\n\n{picture_link('contact sheet', sheet)}"
    sender.send(lambda: create_markdown_artifact(text, key="overnight-pictures"))
    sender.close()
    return page
