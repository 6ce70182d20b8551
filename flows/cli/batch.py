"""Commands of a studio: `batch`, `prune`, `pause`, `unpause`, `prefect-setup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.groups import grouped
from flows.cli.options import (
    OUTPUT,
    HomeOption,
    RootOption,
    Running,
    Sharing,
    Where,
    home_of,
    run_options,
)
from flows.rendering.stop import stop_on_signals
from stages.errors import SpecError

NotifyOption = Annotated[
    str | None,
    typer.Option(help="Who is told at the end: an http address, or a Prefect block such as slack-webhook/studio."),
]

FolderOption = Annotated[
    Path | None,
    typer.Option(help="Folder for a copy of every final picture. Default: the home alone.", rich_help_panel=OUTPUT),
]


@grouped
def batch(
    jobs: Annotated[
        Path, typer.Argument(help="A .yaml, .json, .jsonl, .csv, .tsv or .txt jobs file, or a folder of them.")
    ],
    running: Running,
    sharing: Sharing,
    where: Where,
    out: FolderOption = None,
    until: Annotated[
        str | None,
        typer.Option(help="HH:MM, a time of day after which no job is started, 00:00 to 23:59. Default: no end."),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            help="Time zone of --until, such as Europe/Vienna. Default: this machine's (TZ, else /etc/localtime)."
        ),
    ] = None,
    at_end: Annotated[
        str, typer.Option(help="What a job does that runs at --until: finish, or yield (checkpoint and stop).")
    ] = "finish",
    size: Annotated[str | None, typer.Option(help="Pixels of the jobs that name none. Default: 512x512.")] = None,
    method: Annotated[str | None, typer.Option(help="Method of the jobs that name none. Default: freescale.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the jobs that name none. Default: shapes.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out jobs that cannot be rendered, naming each. Default: no.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try again the jobs that were set aside. Default: no.")
    ] = False,
    notify: NotifyOption = None,
    input_root: RootOption = None,
) -> None:
    """Render all jobs of a file. A job that fails is set aside, and the others go on. The same command goes on."""
    from flows.batch.window import Window
    from flows.cli import run_batch

    if until is None and zone is not None:
        raise SpecError(f"zone: {zone!r} is the time zone of --until, which is missing")
    home = home_of(where.home)
    defaults = {k: v for k, v in {"size": size, "method": method, "model": model}.items() if v is not None}
    options = run_options(running)
    checked = run_batch.checked_and_probed(jobs, home, defaults, skip_bad, options, input_root)
    run_batch.check_memory(checked, home, options)
    window, stop = Window.of(until, zone, at_end), stop_on_signals()
    code = run_batch.work(
        checked, home, options, window, out, again, stop, where.as_json, sharing.dask, sharing.workers, notify
    )
    raise typer.Exit(code)


@grouped
def prune(
    where: Where,
    older_than: Annotated[str, typer.Option(help="Age of what may go: 12h, 7d, 2w.")] = "7d",
    run: Annotated[str | None, typer.Option(help="Only what this run alone uses. Default: every run.")] = None,
    max_size: Annotated[
        str | None, typer.Option(help="The oldest go first until the store has at most this: 50GiB. Default: no limit.")
    ] = None,
    readings: Annotated[bool, typer.Option("--readings", help="Readings of evaluations too. Default: no.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it. Default: only say what would go.")] = False,
) -> None:
    """Free disk: intermediate results of finished runs, and what crashes left. Pictures and unfinished runs stay."""
    from flows.cli import run_prune

    run_prune.run(home_of(where.home), older_than, run, max_size, readings, delete, where.as_json)


def pause(home: HomeOption = None) -> None:
    """Stop all batches of this home with checkpoints, and free their devices, until `unpause`."""
    found = home_of(home)
    found.make()
    (found.root / "paused").touch()
    typer.echo("paused; go on with: freescale unpause")


def unpause(home: HomeOption = None) -> None:
    """Let the batches of this home go on."""
    (home_of(home).root / "paused").unlink(missing_ok=True)
    typer.echo("the batches of this home go on")


def prefect_setup(
    cron: Annotated[
        str | None,
        typer.Option(help="When the nightly batch starts, such as '0 21 * * *'. Default: no schedule."),
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of --cron and --until, such as Europe/Vienna.")] = None,
    until: Annotated[str | None, typer.Option(help="HH:MM, a time of day after which it starts no job.")] = None,
    notify: NotifyOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Runs at a time over all workers. Default: one for each worker.")
    ] = None,
    api: Annotated[str | None, typer.Option(help="Address of the server. Default: PREFECT_API_URL.")] = None,
) -> None:
    """Make work pool, deployments and automations on a Prefect server. Safe to run again."""
    from flows.deployments import setup as prefect_setup

    for line in prefect_setup.setup(cron, zone, until, notify, limit, api):
        typer.echo(line)
