"""`freescale import`: the spec goes to a file or to standard output, what a person has to know to standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.groups import grouped
from flows.cli.options import OUTPUT, OverwriteOption, Where, home_of

ENDINGS = (".yaml", ".yml")


@grouped
def import_picture(
    picture: Annotated[
        str,
        typer.Argument(
            metavar="PICTURE",
            help="A picture with the parameters of A1111, Forge, ComfyUI, InvokeAI or FreeScale in it, a text file "
            "with A1111's parameters or ComfyUI's graph, or - for such a text on standard input.",
        ),
    ],
    where: Where,
    out: Annotated[
        Path | None, typer.Option(help="The .yaml file to write. Default: standard output.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: OverwriteOption = False,
    hash_all: Annotated[
        bool,
        typer.Option(
            "--hash",
            help="Look for files under other names too: read every file of the kind for its hash. Default: no.",
        ),
    ] = False,
) -> None:
    """Write the spec of a picture of another program: prompt, sampling, size, model and LoRAs, and what is missing."""
    from flows.picture_import.importing import import_picture as read
    from storage import whole_file

    if out is not None:
        _check_out(out, overwrite)
    found = read(picture, home_of(where.home).root, hash_all, lambda line: typer.echo(line, err=True))
    for note in found.notes:
        typer.echo(note, err=True)
    if out is not None:
        with whole_file(out.absolute(), out.suffix) as partial:
            partial.write_text(found.text, encoding="utf-8")
        typer.echo(f"{out}: freescale plan {out}", err=True)
    if where.as_json:
        typer.echo(json.dumps(found.as_json()))
    elif out is None:
        typer.echo(found.text, nl=False)


def _check_out(out: Path, overwrite: bool) -> None:
    """Raise `SpecError` where the spec cannot be written to `out`."""
    from flows.rendering.files import check_target
    from stages.errors import SpecError

    if out.suffix.lower() not in ENDINGS:
        raise SpecError(f"out: {str(out)!r} does not end in .yaml; {out.with_suffix('.yaml').name!r} would work")
    if out.exists() and not overwrite:
        raise SpecError(f"out: {str(out)!r} exists; choose another name or say --overwrite")
    check_target("out", out)
