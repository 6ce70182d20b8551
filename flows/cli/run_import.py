"""`freescale import`: the spec goes to a file or to standard output, what a person has to know to standard error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from flows.picture_import.importing import import_picture
from flows.rendering.files import check_target
from stages.errors import SpecError
from storage import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from flows.home import Home

ENDINGS = (".yaml", ".yml")


def run(picture: str, home: Home, out: Path | None, overwrite: bool, hash_all: bool, as_json: bool) -> None:
    """Import a picture. Raises `SpecError` for one without parameters, and for a file that cannot be written."""
    if out is not None:
        if out.suffix.lower() not in ENDINGS:
            raise SpecError(f"out: {str(out)!r} does not end in .yaml; {out.with_suffix('.yaml').name!r} would work")
        if out.exists() and not overwrite:
            raise SpecError(f"out: {str(out)!r} exists; choose another name or say --overwrite")
        check_target("out", out)
    found = import_picture(picture, home.root, hash_all, lambda line: typer.echo(line, err=True))
    for note in found.notes:
        typer.echo(note, err=True)
    if out is not None:
        with whole_file(out.absolute(), out.suffix) as partial:
            partial.write_text(found.text, encoding="utf-8")
        typer.echo(f"{out}: freescale plan {out}", err=True)
    if as_json:
        files = [
            {"kind": each.wanted.kind, "name": each.wanted.name, "path": None if each.path is None else str(each.path)}
            for each in found.found
        ]
        told = {"program": found.program, "files": files, "not_carried_over": dict(found.left_out), "spec": found.text}
        typer.echo(json.dumps(told))
    elif out is None:
        typer.echo(found.text, nl=False)
