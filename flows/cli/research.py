"""Commands of a researcher: `compare`, `evaluate`, `study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.groups import grouped
from flows.cli.options import (
    OUTPUT,
    Grid,
    JsonOption,
    OverwriteOption,
    Running,
    Sharing,
    Where,
    flags_of,
    home_of,
    run_options,
)
from flows.cli.parsing import App
from flows.rendering.stop import stop_on_signals

study = App(no_args_is_help=True, help="Ask people: a page that shows methods blind, and the count of answers.")
GridFile = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC]", help="A .yaml or .json file; the options below replace its fields."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(help="Folder for the result. Default: a folder in the home.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class Measuring:
    """What an evaluation measures, and against what."""

    protocol: Annotated[
        str | None,
        typer.Option(
            help="What the pictures are measured against: base (the model's own at its training size), real (a folder "
            "of pictures) or truth (true scenes, for the embedded models)."
        ),
    ] = None
    reference: Annotated[str | None, typer.Option(help="The folder of pictures, for --protocol real.")] = None
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Of pictures fid, kid, is, fid_c, kid_c, clip_score, objects; of videos fvd, kvd, dynamic_degree, "
            "flicker, aesthetic, objects. May be repeated."
        ),
    ] = None
    extractor: Annotated[
        str | None,
        typer.Option(help="The feature network: shapes or inception; of videos shapes-motion or i3d."),
    ] = None
    resize: Annotated[
        str | None, typer.Option(help="How frames are resized for i3d: bilinear or antialias. Default: bilinear.")
    ] = None


@grouped
def compare(
    what: GridFile = None,
    *,
    grid: Grid,
    running: Running,
    sharing: Sharing,
    where: Where,
    out: FolderOption = None,
    overwrite: OverwriteOption = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try again the pictures that were set aside. Default: no.")
    ] = False,
) -> None:
    """Show methods side by side: a contact sheet and a page with synchronised zoom. The same command goes on."""
    from flows.cli import run_compare
    from flows.cli.flags import grid_values
    from stages.metrics.grid import make_grid

    values, written = grid_values(what, flags_of(grid))
    with written.located():
        spec = make_grid(values)
    options, stop, home = run_options(running), stop_on_signals(), home_of(where.home)
    code = run_compare.run(
        spec, home, options, stop, out, overwrite, again, where.as_json, sharing.dask, sharing.workers
    )
    raise typer.Exit(code)


@study.command("make")
def study_make(
    comparison: Annotated[Path, typer.Argument(help="The folder of a finished comparison.")],
    out: Annotated[Path, typer.Option(help="Folder for the page and its key.")],
    seed: Annotated[int, typer.Option(help="Of the order in which pictures are shown.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Write one page that shows the methods blind and asks three questions, and the key that names them."""
    from flows.compare.study import make_study

    for path in make_study(comparison, out, seed, overwrite):
        typer.echo(path)


@study.command("tally")
def study_tally(
    key: Annotated[Path, typer.Argument(help="The study's key.json.")],
    ballots: Annotated[list[Path], typer.Argument(help="The files that voters saved.")],
    as_json: JsonOption = False,
) -> None:
    """Count ballots: each method's share of every question, with intervals. A bad or double ballot is refused."""
    from flows.compare.study_tally import print_tally

    print_tally(key, ballots, as_json)


@grouped
def evaluate(
    what: GridFile = None,
    *,
    grid: Grid,
    running: Running,
    sharing: Sharing,
    where: Where,
    measuring: Measuring,
    out: FolderOption = None,
    readings: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of readings: those in it are not made again, new ones are added. If repeated, the others are "
            "only read.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    dry: Annotated[
        bool, typer.Option("--plan", help="Check everything, count what is left to do, start nothing. Default: no.")
    ] = False,
) -> None:
    """Measure methods: render prompts x methods x sizes x seeds, then FID, KID, IS, CLIP score, with intervals."""
    from flows.cli import run_evaluate

    spec = run_evaluate.evaluation_from(what, flags_of(grid) | flags_of(measuring))
    options, stop, home = run_options(running), stop_on_signals(), home_of(where.home)
    run_evaluate.run(
        spec, home, options, stop, out, overwrite, dry, where.as_json, sharing.dask, sharing.workers, readings or ()
    )
