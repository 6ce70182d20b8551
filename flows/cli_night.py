"""Commands of a studio: `prune`, `pause`, `unpause`, `prefect-setup`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.options import HomeOption, JsonOption, home_of


def prune(
    older_than: Annotated[str, typer.Option(help="Age of what may go: 12h, 7d, 2w.")] = "7d",
    run: Annotated[str | None, typer.Option(help="Only what this run has for itself.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Oldest first until the store has at most: 50GiB.")] = None,
    readings: Annotated[bool, typer.Option("--readings", help="Readings of evaluations too.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only say what would go.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free disk: intermediates of done runs, leftovers of crashes. Pictures and unfinished runs stay."""
    from flows import pruning

    pruning.run(home_of(home), older_than, run, max_size, readings, delete, as_json)


def pause(home: HomeOption = None) -> None:
    """Halt every night of this home, with checkpoints and the devices free, until `unpause`."""
    root = home_of(home).root
    root.mkdir(parents=True, exist_ok=True)
    (root / "paused").touch()
    typer.echo("paused; freescale unpause lets nights go on")


def unpause(home: HomeOption = None) -> None:
    """Let the nights of this home go on."""
    (home_of(home).root / "paused").unlink(missing_ok=True)
    typer.echo("nights go on")


def prefect_setup(
    cron: Annotated[str | None, typer.Option(help="When the night starts, such as '0 21 * * *'; turns it on.")] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of --cron and --until: Europe/Vienna.")] = None,
    until: Annotated[str | None, typer.Option(help="HH:MM after which the night starts no job.")] = None,
    notify: Annotated[str | None, typer.Option(help="Who is told at the end: an http address, or a block.")] = None,
    limit: Annotated[int | None, typer.Option(help="Runs at a time over all workers; default: one a worker.")] = None,
    api: Annotated[str | None, typer.Option(help="The server, where PREFECT_API_URL does not say.")] = None,
) -> None:
    """Make work pool, heartbeat automation and deployments on a Prefect server; safe to run again."""
    from flows import prefect_setup

    for line in prefect_setup.setup(cron, zone, until, notify, limit, api):
        typer.echo(line)
