"""`freescale models`: what can be named, and folders of other programs that are linked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.console import plain_console
from flows.cli.groups import grouped
from flows.cli.options import HomeOption, Where, home_of
from flows.cli.parsing import App
from stages.errors import SpecError

if TYPE_CHECKING:
    from flows.home import Home
    from flows.library.listing import Row

WIDE = 10_000  # columns: a row is one line, however long its path is
models = App(invoke_without_command=True)


@models.callback()
@grouped
def listed(
    context: typer.Context,
    where: Where,
    hash_all: Annotated[
        bool,
        typer.Option(
            "--hash",
            help="Read every file that was not read yet for its sha256, which the home then remembers; "
            "a file of 7 GB takes seconds to a minute. Default: no.",
        ),
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run each model's UNet once, to see what it predicts. Default: no.")
    ] = False,
) -> None:
    """List models, LoRAs, embeddings, VAEs and text encoders that can be named: what each is, hash, trigger words."""
    if context.invoked_subcommand is not None:
        return
    from flows.library.listing import rows

    home = home_of(where.home)
    if probe:
        _print_probes(home)
    found = list(rows(home, hash_all, lambda text: typer.echo(text, err=True)))
    if where.as_json:
        typer.echo(json.dumps([row.as_json() for row in found]))
    else:
        _print(found)


@models.command()
@grouped
def add(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of ComfyUI, A1111, Forge, SD.Next or InvokeAI, or its models folder; an "
            "extra_model_paths.yaml; or any folder, whose files are told by what they hold."
        ),
    ],
    home: HomeOption = None,
) -> None:
    """Link a folder of another program: its files can be named from now on. They stay where they are."""
    from stages.models.linked_folders import link

    found = link(home_of(home).root, folder)
    for each in found:
        typer.echo(f"{each.kind or 'any kind'}: {each.path}")


@models.command()
@grouped
def remove(
    folder: Annotated[Path, typer.Argument(help="The folder as it was linked; `freescale models add` links it again.")],
    home: HomeOption = None,
) -> None:
    """Forget a linked folder. Nothing in it is deleted."""
    from stages.models.linked_folders import unlink

    typer.echo(f"{unlink(home_of(home).root, folder)}: no longer linked")


def _print_probes(home: Home) -> None:
    """What each model's UNet predicts, by a probe, or what is wrong with the model; one line each."""
    from flows.rendering.probing import probe_model
    from stages.models.load import available
    from stages.spec import RunOptions

    for name, _ in available(home.root):
        try:
            says = probe_model(name, home, RunOptions())
        except SpecError as error:
            says = str(error)
        typer.echo(f"{name}: {says}", err=True)


def _print(found: list[Row]) -> None:
    """One line a file: what people choose by, then what it is or what is wrong with it."""
    table = Table(
        "kind", "name", "family", "predicts", "trained at", "steps", "dtype", "hash", "words", "what it is", box=None
    )
    for row in found:
        trained = f"{row.native}, {row.frames} frames" if row.frames else row.native
        what = row.error or ": ".join(filter(None, (row.what, row.why)))
        steps, words = str(row.steps or ""), ", ".join(row.triggers)
        cells = (row.kind, row.name, row.family, row.prediction, trained, steps, row.dtype, row.short_hash, words, what)
        table.add_row(*("".join(c if c.isprintable() else "?" for c in cell) for cell in cells))
    plain_console(width=WIDE).print(table)
