"""Commands of a studio: `batch`, `prune`, `pause`, `unpause`, `prefect-setup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import (
    DaskOption,
    DeviceOption,
    EveryOption,
    HomeOption,
    JsonOption,
    MemoryOption,
    OutOption,
    ThreadsOption,
    VaeMemoryOption,
    VaeTileOption,
    WorkersOption,
    home_of,
    options_of,
    stop_on_signals,
)


def batch(
    jobs: Annotated[Path, typer.Argument(help="A .yaml, .json, .jsonl, .csv or .txt jobs file, or a folder of them.")],
    out: OutOption = None,
    until: Annotated[str | None, typer.Option(help="HH:MM after which no job is started.")] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of --until; default: this machine's.")] = None,
    at_end: Annotated[
        str, typer.Option(help="What runs at --until: finish, or yield (checkpoint and stop).")
    ] = "finish",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of jobs that name none.")] = None,
    method: Annotated[str | None, typer.Option(help="Method of jobs that name none.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of jobs that name none.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out jobs that cannot be, naming each.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Take up what was set aside.")] = False,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    notify: Annotated[
        str | None, typer.Option(help="Who is told at the end: an http address, or a block's name.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    memory: MemoryOption = None,
    vae_memory: VaeMemoryOption = None,
    vae_tile: VaeTileOption = 512,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render all jobs of a file; one that fails is set aside and the night goes on. Typed again, it goes on."""
    from flows.batch.runner import Window
    from flows.cli import run_batch as night

    place = home_of(home)
    defaults = {k: v for k, v in {"size": size, "method": method, "model": model}.items() if v is not None}
    orders = night.checked(jobs, place, defaults, skip_bad)
    options = options_of(
        device=device,
        threads=threads,
        checkpoint_every=checkpoint_every,
        memory=memory,
        vae_memory=vae_memory,
        vae_tile=vae_tile,
    )
    night.check_memory(orders, place, options)
    window = Window.of(until, zone, at_end)
    stop = stop_on_signals()
    raise typer.Exit(night.work(orders, place, options, window, out, again, stop, as_json, dask, workers, notify))


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
    from flows.rendering import prune as pruning

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
    from flows.deployments import setup as prefect_setup

    for line in prefect_setup.setup(cron, zone, until, notify, limit, api):
        typer.echo(line)
