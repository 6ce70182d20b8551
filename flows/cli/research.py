"""Commands of a researcher: `compare`, `evaluate`, `study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import (
    DaskOption,
    DeviceOption,
    EveryOption,
    FpsOption,
    FramesOption,
    HomeOption,
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    WorkersOption,
    home_of,
    options_of,
    stop_on_signals,
)

study = typer.Typer(no_args_is_help=True, help="Ask people: a page that shows methods blind, and the count of answers.")
GridFile = Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="A .yaml or .json file.")]
ModelOption = Annotated[str | None, typer.Option(help="shapes, a name under the models folder, or a folder.")]
MethodsOption = Annotated[list[str] | None, typer.Option(help="May be repeated; parameters go into a spec.")]
SizesOption = Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT; may be repeated.")]
PromptsOption = Annotated[str | None, typer.Option(help="shapes, or a text file with a prompt a line.")]
CountOption = Annotated[int | None, typer.Option(help="Prompts used.")]
SeedsOption = Annotated[list[int] | None, typer.Option(help="May be repeated.")]
StepsOption = Annotated[int | None, typer.Option()]


def compare(
    what: GridFile = None,
    model: ModelOption = None,
    method: MethodsOption = None,
    size: SizesOption = None,
    prompts: PromptsOption = None,
    count: CountOption = None,
    seed: SeedsOption = None,
    steps: StepsOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default: under the home folder.")] = None,
    overwrite: OverwriteOption = False,
    again: Annotated[bool, typer.Option("--again", help="Take up what was set aside.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show methods side by side: a contact sheet and a page with synchronised zoom. Typed again, it goes on."""
    from flows.cli import run_compare as compare_requests
    from flows.cli.flags import grid_values
    from stages.metrics.grid import make_grid

    flags = {"model": model, "method": method, "size": size, "prompts": prompts, "count": count, "seed": seed}
    spec = make_grid(grid_values(what, flags | {"steps": steps, "frames": frames, "fps": fps}))
    options = options_of(device=device, threads=threads, checkpoint_every=checkpoint_every)
    stop = stop_on_signals()
    place = home_of(home)
    code = compare_requests.run(spec, place, options, stop, out, overwrite, again, as_json, dask, workers)
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


def evaluate(
    what: GridFile = None,
    model: ModelOption = None,
    method: MethodsOption = None,
    size: SizesOption = None,
    prompts: PromptsOption = None,
    count: CountOption = None,
    seed: SeedsOption = None,
    steps: StepsOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    protocol: Annotated[str | None, typer.Option(help="Of the reference: base, real or truth.")] = None,
    reference: Annotated[str | None, typer.Option(help="A folder of pictures, for protocol real.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="fid, kid, is, fid_c, kid_c, clip_score, objects; of videos fvd, kvd, dynamic_degree, flicker, "
            "aesthetic, objects."
        ),
    ] = None,
    extractor: Annotated[str | None, typer.Option(help="shapes or inception; of videos shapes-motion or i3d.")] = None,
    resize: Annotated[str | None, typer.Option(help="Of frames, for i3d: bilinear or antialias.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables; default: under the home folder.")] = None,
    readings: Annotated[
        list[Path] | None,
        typer.Option(help="A file to take readings from and add them to; if repeated, the others are only taken from."),
    ] = None,
    overwrite: OverwriteOption = False,
    dry: Annotated[bool, typer.Option("--plan", help="Check all, count what is to do, start nothing.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure methods: render prompts x methods x sizes x seeds, then FID, KID, IS, crops, words, with intervals."""
    from flows.cli import run_evaluate as requests

    flags = {"model": model, "method": method, "size": size, "prompts": prompts, "count": count, "seed": seed}
    flags |= {"steps": steps, "frames": frames, "fps": fps}
    flags |= {"protocol": protocol, "folder": reference, "metric": metric, "extractor": extractor}
    flags |= {"resize": resize}
    spec = requests.evaluation_from(what, flags)
    options = options_of(device=device, threads=threads, checkpoint_every=checkpoint_every)
    stop, place = stop_on_signals(), home_of(home)
    requests.run(spec, place, options, stop, out, overwrite, dry, as_json, dask, workers, readings or ())
