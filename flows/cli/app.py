"""The command line. Every command works offline with no service running, and leaves none behind.

Exit codes: 0 done, 1 failed, 2 bad input, 3 interrupted but resumable. Pictures and progress go to files and
standard error; with `--json` the last line of standard output is one object.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import batch, convert, import_picture, models, presets, research
from flows.cli.console import tell_seeds
from flows.cli.groups import grouped
from flows.cli.lazy_torch import postpone
from flows.cli.model_options import ModelFiles
from flows.cli.options import (
    Format,
    FpsOption,
    HomeOption,
    JsonOption,
    MaskOption,
    Memory,
    Output,
    Picture,
    RootOption,
    Running,
    Sharing,
    Where,
    flags_of,
    home_of,
    run_options,
)
from flows.cli.parsing import App, options_of, usage
from flows.cli.prompt_options import Prompts
from flows.cli.sampling_options import Levels
from flows.cli.streams import safe_streams

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.spec import RunOptions

app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, as `freescale runs` lists it, or its beginning.")
]
LevelOption = Annotated[
    int | None, typer.Option(help="Level of the cascade: 0 is the training size. Default: the last.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"freescale {importlib.metadata.version('freescale-render')}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            help="s3://BUCKET/PREFIX: keep artifacts, checkpoints and runs in a bucket. "
            "Default: FREESCALE_STORE, else the home folder."
        ),
    ] = None,
) -> None:
    """Given before the command."""
    if store is not None:
        os.environ["FREESCALE_STORE"] = store


@app.command(context_settings=EXTRA)
@grouped
def render(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="PROMPT|SPEC", help="Words, or a .yaml or .json spec file.")],
    picture: Picture,
    files: ModelFiles,
    prompts: Prompts,
    levels: Levels,
    running: Running,
    sharing: Sharing,
    file: Format,
    output: Output,
    where: Where,
    input_root: RootOption = None,
) -> None:
    """Render a picture or a video in checkpointed stages. The same command again goes on after a crash."""
    from flows.cli.flags import asked
    from flows.cli.run_render import run

    home = home_of(where.home)
    flags = flags_of(picture) | flags_of(files) | flags_of(prompts) | flags_of(levels) | flags_of(file)
    found = asked(what, flags, context.args, home, input_root, options_of(context))
    tell_seeds(found.drawn)
    run(found.job, home, run_options(running), sharing, output, where.as_json, found.name)


@app.command(context_settings=EXTRA)
@grouped
def plan(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="PROMPT|SPEC|RUN", help="Words, a .yaml or .json spec file, or the name of a run.")
    ],
    picture: Picture,
    files: ModelFiles,
    prompts: Prompts,
    levels: Levels,
    memory: Memory,
    file: Format,
    where: Where,
    why: Annotated[
        bool,
        typer.Option("--why", help="Name the fields that differ from the nearest artifact in the store. Default: no."),
    ] = False,
    input_root: RootOption = None,
) -> None:
    """Show the levels and stages of a render, what is reused, and memory, time and disk. Nothing is started."""
    from flows.cli.flags import asked_or_run
    from stages.planner.apart import traced_apart

    home = home_of(where.home)
    flags = flags_of(picture) | flags_of(files) | flags_of(prompts) | flags_of(levels) | flags_of(file)
    with traced_apart():
        found = asked_or_run(what, flags, context.args, home, input_root, options_of(context))
        tell_seeds(found.drawn)
        _show_plan(found.job, home, run_options(memory), why, where.as_json)


@app.command()
@grouped
def resume(run: RunArgument, running: Running, sharing: Sharing, output: Output, where: Where) -> None:
    """Go on with a run from its last checkpoint, or show that it is done. Without --out, to where it first wrote."""
    from flows.cli.run_render import go_on
    from flows.rendering.export import first_target
    from flows.rendering.stored import resumed

    home = home_of(where.home)
    first = first_target(home.record(run), home)
    go_on(resumed(home, run), home, run_options(running), sharing, output, where.as_json, first)


@app.command(context_settings=EXTRA)
@grouped
def redo(
    context: typer.Context,
    run: RunArgument,
    stage: Annotated[
        str,
        typer.Option(
            "--from", help="First stage to make again: base_denoise, upscale, renoise, highres_denoise or detail_pass."
        ),
    ],
    running: Running,
    sharing: Sharing,
    output: Output,
    where: Where,
    level: LevelOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed, 0 or larger; -1: a new random one. Default: the run's.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Another guidance scale, 0 to 50. Default: the run's.")
    ] = None,
    mask: MaskOption = None,
    dry: Annotated[bool, typer.Option("--plan", help="Show what would be reused; start nothing. Default: no.")] = False,
) -> None:
    """Make a run again from one stage on, with other parameters. Everything before that stage is reused."""
    from flows.cli.flags import redo_spec
    from flows.cli.run_render import go_on
    from flows.rendering.job import load
    from flows.rendering.stored import StoredRun, redone

    home = home_of(where.home)
    record, spec = load(home, run)
    level = max(call.level or 0 for call in record.plan) if level is None else level
    changes = {"seed": seed, "guidance_scale": guidance_scale, "mask": mask}
    changed = redo_spec(spec, stage, level, changes, context.args, options_of(context))
    found = redone(home, record, changed)
    tell_seeds([change.seed for change in changed.redo[-1:] if seed == -1])
    options = run_options(running)
    if dry and not isinstance(found, StoredRun):
        _show_plan(found, home, options, False, where.as_json)
    else:
        go_on(found, home, options, sharing, output, where.as_json)


@app.command()
@grouped
def runs(
    where: Where,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many. Default: all.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only runs that are running, done, stopped, cancelled, lost or failed. Default: all."),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only runs created in the last 12h, 7d, 2w. Default: all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the runs made for evaluations. Default: no.")] = False,
) -> None:
    """List the runs of this home, newest first."""
    from flows.cli.tables import print_runs
    from flows.rendering.prune import parse_age

    age = None if since is None else parse_age(since, "since")
    print_runs(home_of(where.home), where.as_json, limit, state, age, every)


@app.command()
@grouped
def show(run: RunArgument, where: Where) -> None:
    """Show a run: its spec, stages, attempts and pictures."""
    from flows.cli.tables import print_run

    print_run(home_of(where.home), run, where.as_json)


@app.command()
@grouped
def export(
    run: RunArgument,
    output: Output,
    format: Annotated[
        str | None,
        typer.Option(
            help="Of a picture png, tiff or webp; of a video mp4, hevc, ffv1 or frames (a zip of PNG files). "
            "Default: png, or the video's own."
        ),
    ] = None,
    level: LevelOption = None,
    fps: FpsOption = None,
    crf: Annotated[
        int | None,
        typer.Option(min=0, max=51, help="Quality of mp4 and hevc, 0 to 51; smaller is better. Default: 18."),
    ] = None,
    pixel_format: Annotated[
        str | None, typer.Option(help="Of mp4 and hevc: yuv420p or yuv444p. Default: yuv420p.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write a level's picture or video of a run in another format."""
    from flows.rendering.export import export_level
    from flows.rendering.stored import exports_of

    found, how = home_of(home), {"fps": fps, "crf": crf, "pixel_format": pixel_format}
    exports, out = exports_of(found.record(run)), output.out or Path.cwd()
    typer.echo(export_level(found, run, exports, format, level, out, output.overwrite, **how))


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the methods with their parameters, types and defaults, and the ablations of FreeScale."""
    from flows.cli.tables import print_methods

    print_methods(as_json)


@app.command()
@grouped
def doctor(where: Where) -> None:
    """Check versions, devices, disk, store, and the Prefect server where one is."""
    from flows.cli import doctor as checks

    raise typer.Exit(checks.report(home_of(where.home), where.as_json))


for command in (batch.batch, batch.pause, batch.unpause, batch.prune, batch.prefect_setup):
    app.command()(command)
for command in (research.compare, research.evaluate):
    app.command()(command)
app.command()(presets.presets)
app.command("import")(import_picture.import_picture)
app.add_typer(research.study, name="study")
app.add_typer(convert.convert, name="convert")
app.add_typer(models.models, name="models")


def _show_plan(job: Job, home: Home, options: RunOptions, why: bool, as_json: bool) -> None:
    from flows.cli.show_plan import print_plan

    print_plan(job, home, options, why, as_json)


@cache
def parser() -> typer.core.TyperGroup:
    """Return all commands as the parser that `main` runs; it is made once a process."""
    return typer.main.get_group(app)


def main() -> None:
    """The console script."""
    postpone()
    with safe_streams():
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        try:
            sys.exit(parser()(standalone_mode=False) or 0)
        except KeyboardInterrupt:
            sys.exit(3)
        except typer.TyperException as error:
            if told := usage(error):
                print(f"freescale: {told}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:
            from stages.errors import SpecError
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
