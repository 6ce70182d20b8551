"""The command line. Every command works offline with no service running; none is left behind.

Exit codes: 0 done, 1 failed, 2 bad input, 3 interrupted but resumable. Pictures and progress go to files and
standard error; with `--json` the last line of standard output is one object.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import batch as cli_night
from flows.cli import convert as cli_convert
from flows.cli import research as cli_field
from flows.cli.options import (
    DaskOption,
    DeviceOption,
    EveryOption,
    FpsOption,
    FramesOption,
    HomeOption,
    JsonOption,
    MaskOption,
    MemoryOption,
    OutOption,
    OverwriteOption,
    RootOption,
    SplitOption,
    ThreadsOption,
    VaeMemoryOption,
    VaeTileOption,
    WorkersOption,
    home_of,
    options_of,
    stop_on_signals,
)

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.session import Job, Result
    from stages.spec import RunOptions

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command()(cli_field.compare)
app.command()(cli_field.evaluate)
app.command()(cli_night.batch)
app.command()(cli_night.prune)
app.command()(cli_night.pause)
app.command()(cli_night.unpause)
app.command()(cli_night.prefect_setup)
app.add_typer(cli_field.study, name="study")
app.add_typer(cli_convert.convert, name="convert")


@app.callback()
def every_command(
    store: Annotated[
        str | None, typer.Option(help="s3://BUCKET/PREFIX instead of a folder; else FREESCALE_STORE.")
    ] = None,
) -> None:
    """Given before the command."""
    if store is not None:
        os.environ["FREESCALE_STORE"] = store


@app.command(context_settings=EXTRA)
def render(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="PROMPT|SPEC", help="Words, or a .yaml or .json spec file.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 8.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    method: Annotated[str | None, typer.Option(help="freescale or direct; its own parameters are flags too.")] = None,
    model: Annotated[str | None, typer.Option(help="shapes, a name under the models folder, or a folder.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture to start from.")] = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    mask: MaskOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    split_guidance: SplitOption = False,
    memory: MemoryOption = None,
    vae_memory: VaeMemoryOption = None,
    vae_tile: VaeTileOption = 512,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    input_root: RootOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a picture or video through checkpointed stages; typed again after a crash, it goes on where it was."""
    from flows.cli import flags as requests

    flags: dict[str, Any] = {"size": size, "seed": seed, "steps": steps, "method": method, "model": model}
    flags |= {"image": image, "frames": frames, "fps": fps, "mask": mask}
    place = home_of(home)
    spec = requests.spec_from(what, flags, context.args)
    job = _prepare(spec, place, input_root)
    options = options_of(
        device=device,
        threads=threads,
        checkpoint_every=checkpoint_every,
        split_guidance=split_guidance,
        memory=memory,
        vae_memory=vae_memory,
        vae_tile=vae_tile,
    )
    _run(job, place, options, out or Path.cwd(), overwrite, as_json, dask, workers)


@app.command(context_settings=EXTRA)
def plan(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="PROMPT|SPEC|RUN")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, multiples of 8.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    method: Annotated[str | None, typer.Option()] = None,
    model: Annotated[str | None, typer.Option()] = None,
    image: Annotated[str | None, typer.Option()] = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    mask: MaskOption = None,
    why: Annotated[
        bool, typer.Option("--why", help="Name the fields that differ from the nearest made before.")
    ] = False,
    device: DeviceOption = "auto",
    split_guidance: SplitOption = False,
    memory: MemoryOption = None,
    vae_memory: VaeMemoryOption = None,
    vae_tile: VaeTileOption = 512,
    input_root: RootOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show levels, stages, what is reused and what it would cost; start nothing."""
    from flows.cli import flags as requests

    flags: dict[str, Any] = {"size": size, "seed": seed, "steps": steps, "method": method, "model": model}
    flags |= {"image": image, "frames": frames, "fps": fps, "mask": mask}
    place = home_of(home)
    spec = requests.spec_or_run(what, flags, context.args, place)
    options = options_of(
        device=device,
        split_guidance=split_guidance,
        memory=memory,
        vae_memory=vae_memory,
        vae_tile=vae_tile,
    )
    _show_plan(_prepare(spec, place, input_root), place, options, why, as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument()],
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    split_guidance: SplitOption = False,
    memory: MemoryOption = None,
    vae_memory: VaeMemoryOption = None,
    vae_tile: VaeTileOption = 512,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run from its last checkpoint, or show that it is done."""
    from flows.rendering.session import load

    place = home_of(home)
    record, spec = load(place, run)
    job = _prepare(spec, place, None, record.origin)
    options = options_of(
        device=device,
        threads=threads,
        checkpoint_every=checkpoint_every,
        split_guidance=split_guidance,
        memory=memory,
        vae_memory=vae_memory,
        vae_tile=vae_tile,
    )
    _run(job, place, options, out or Path.cwd(), overwrite, as_json, dask, workers)


@app.command(context_settings=EXTRA)
def redo(
    context: typer.Context,
    run: Annotated[str, typer.Argument()],
    stage: Annotated[
        str, typer.Option("--from", help="base_denoise, upscale, renoise, highres_denoise or detail_pass.")
    ],
    level: Annotated[int | None, typer.Option(help="Of the cascade; default: the last.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    mask: MaskOption = None,
    dry: Annotated[bool, typer.Option("--plan", help="Show what would be reused; start nothing.")] = False,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint_every: EveryOption = 60.0,
    memory: MemoryOption = None,
    vae_memory: VaeMemoryOption = None,
    vae_tile: VaeTileOption = 512,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run again from one stage on, with other parameters; everything before is reused."""
    from flows.cli import flags as requests
    from flows.rendering.session import load

    place = home_of(home)
    _, spec = load(place, run)
    changes = {"seed": seed, "guidance_scale": guidance_scale, "mask": mask}
    again = requests.redo_spec(spec, stage, level, changes, context.args, place)
    job = _prepare(again, place, None, origin=run)
    options = options_of(
        device=device,
        threads=threads,
        checkpoint_every=checkpoint_every,
        memory=memory,
        vae_memory=vae_memory,
        vae_tile=vae_tile,
    )
    if dry:
        _show_plan(job, place, options, False, as_json)
        return
    _run(job, place, options, out or Path.cwd(), overwrite, as_json)


@app.command()
def runs(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the runs of this home, newest first."""
    from flows.cli import tables as report

    report.print_runs(home_of(home), as_json)


@app.command()
def show(run: Annotated[str, typer.Argument()], home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show a run: its spec, stages, attempts and pictures."""
    from flows.cli import tables as report
    from flows.rendering.session import load

    place = home_of(home)
    record, spec = load(place, run)
    report.print_run(record, spec, place, as_json)


@app.command()
def export(
    run: Annotated[str, typer.Argument()],
    format: Annotated[
        str | None, typer.Option(help="png, tiff or webp; of a video mp4, hevc, ffv1 or frames (a zip of PNG files).")
    ] = None,
    level: Annotated[int | None, typer.Option(help="Of the cascade; default: the last.")] = None,
    fps: FpsOption = None,
    crf: Annotated[int | None, typer.Option(min=0, max=51, help="Quality of mp4 and hevc; smaller is better.")] = None,
    pixel_format: Annotated[str | None, typer.Option(help="yuv420p or yuv444p, of mp4 and hevc.")] = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    home: HomeOption = None,
) -> None:
    """Write a level's picture or video of a run in another format."""
    from flows.rendering.session import export_level, load

    place = home_of(home)
    _, spec = load(place, run)
    how = {"fps": fps, "crf": crf, "pixel_format": pixel_format}
    typer.echo(export_level(place, spec, format, level, out or Path.cwd(), overwrite, **how))


@app.command()
def models(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the models that can be named, and where they were found."""
    from flows.cli import tables as report

    report.print_models(home_of(home), as_json)


@app.command()
def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check versions, devices, disk and store."""
    from flows.cli import doctor as checks

    raise typer.Exit(checks.report(home_of(home), as_json))


def _prepare(spec: Any, home: Home, root: Path | None, origin: str | None = None) -> Job:
    from flows.rendering.session import prepare

    return prepare(spec, home, root, origin)


def _show_plan(job: Job, home: Home, options: RunOptions, why: bool, as_json: bool) -> None:
    from flows.cli import show_plan as plan_report

    plan_report.print_plan(job, home, options, why, as_json)


def _run(
    job: Job, home: Home, options: RunOptions, out: Path, overwrite: bool, as_json: bool,
    dask: str | None = None, workers: int | None = None,
) -> None:  # fmt: skip
    """Render with the signals turned into an orderly stop, and print how it went."""
    from flows.cli.terminal import Terminal
    from flows.cluster.fanout import spread_over
    from flows.rendering.advice import remarks
    from flows.rendering.session import Session
    from stages.device import pick_device
    from stages.runner import Interrupted

    terminal = Terminal()
    session = Session(home, options, terminal, stop_on_signals())
    terminal.say(f"{job.run}: {' -> '.join(f'{w}x{h}' for h, w in job.plan.sizes)} with {job.spec.method.name}")
    for remark in remarks([("", job)], pick_device(options.device)):
        terminal.say(f"note: {remark}")
    terminal.begin(job.plan)
    try:
        with spread_over(home, options, session.stop, dask, workers) as session.spread:
            result: Result = session.render(job, out, overwrite)
    except (Interrupted, KeyboardInterrupt) as stopped:
        terminal.end()
        terminal.say(f"{stopped or 'stopped'}; go on with: freescale resume {job.run}")
        raise typer.Exit(3) from None
    finally:
        terminal.end()
    terminal.say(f"{result.outputs[0]}  {result.seconds:.1f} s  pixels {result.pixels_sha256[:16]}")
    if as_json:
        typer.echo(json.dumps(result.as_json()))


def main() -> None:
    """The console script."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(3)
    except Exception as error:
        from stages.spec import SpecError
        from storage import StorageError

        if isinstance(error, SpecError):
            print(f"freescale: {error}", file=sys.stderr)
            sys.exit(2)
        logging.getLogger("freescale").debug("failed", exc_info=True)
        kind = "" if isinstance(error, StorageError) else f"{type(error).__name__}: "
        print(f"freescale: {kind}{error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
