"""Commands of a studio: `prune`, `pause`, `unpause`."""

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
