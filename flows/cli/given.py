"""What is given as PROMPT|SPEC: words of a prompt, a spec file, or another file, which is refused with what it is for.

A text that names something on disk, or that ends like a file, is never drawn.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.home import user_path
from flows.rendering.fields import line_of
from stages.errors import SpecError, nearest
from stages.textfiles.documents import read_json, read_yaml
from stages.textfiles.text import UnreadableError, read_text
from stages.textfiles.values import Lines

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

MAX_BYTES = 2**20
SPECS = (".yaml", ".yml", ".json")
USES = {  # what a file is, by how its name ends, and where it is given
    **dict.fromkeys((".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".txt"), "is a jobs file; freescale batch {0}"),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
        "is a picture; freescale import {0} reads its parameters, freescale render 'WORDS' --image {0} enlarges it",
    ),
    **dict.fromkeys(
        (".safetensors", ".ckpt", ".pt", ".pth", ".bin"),
        "is a model's weights; freescale render 'WORDS' --model FOLDER",
    ),
}
FILE = re.compile(r"\S*\.[A-Za-z][A-Za-z0-9]{1,4}|\w+://\S*|(~|\.{1,2})?[/\\]\S*|\w:\\.*|\S+[/\\]")
"""A single word that ends like a file or begins like a path or an address."""


@dataclass(frozen=True)
class Written:
    """What a spec file holds, with the lines of its fields; without a path, nothing was written."""

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    lines: Lines = field(default_factory=lambda: Lines(1))

    @property
    def folder(self) -> Path:
        """The folder of the file, else the working folder."""
        return Path() if self.path is None else self.path.parent

    @contextmanager
    def located(self, typed: Container[str] = ()) -> Iterator[None]:
        """Name file and line in a `SpecError` of the body about a field that is not among the `typed` ones."""
        try:
            yield
        except SpecError as error:
            parts = str(error).partition(":")[0].split(".")
            if self.path is None or parts[0] in typed or parts[-1] in typed:
                raise
            raise SpecError(f"{self.path}:{line_of(error, self.lines)}: {error}") from None


def read_given(what: str) -> Written | None:
    """Return the fields of a spec file, or None for words. Raises `SpecError` for any other file, there or not."""
    if what == "-":
        raise SpecError("spec: '-' would be standard input, which is not read; name a file, or write the words")
    suffix = os.path.splitext(what)[1].lower()
    exists = os.path.lexists(os.path.expanduser(what)) and bool(what.strip())
    if not exists and not FILE.fullmatch(what) and suffix not in (*SPECS, *USES):
        return None
    if suffix in SPECS:
        return read_spec(user_path(what))
    if suffix in USES:
        raise SpecError(f"{what!r} {USES[suffix].format(what)}" + ("" if exists else " (it does not exist)"))
    if not exists:
        raise SpecError(
            f"spec: {what!r} does not exist; a spec file ends in {', '.join(SPECS)}, a prompt has several words"
        )
    kind = "a folder" if os.path.isdir(os.path.expanduser(what)) else f"a file that does not end in {', '.join(SPECS)}"
    raise SpecError(f"spec: {what!r} is {kind}; to draw these words, add another one")


def read_spec(path: Path) -> Written:
    """Return the fields of a YAML or JSON spec file of up to 1 MiB. Raises `SpecError` with the file and the line."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise SpecError(f"spec: {str(path)!r} is a folder; name a file that ends in {', '.join(SPECS)}")
    if suffix not in SPECS:
        raise SpecError(f"spec: {str(path)!r} does not end in {', '.join(SPECS)}")
    if not path.exists():
        raise SpecError(f"spec: {str(path)!r} does not exist{_similar(path)}")
    try:
        values, lines = (read_json if suffix == ".json" else read_yaml)(read_text(path, MAX_BYTES))
    except UnreadableError as error:
        raise SpecError(f"{path}{'' if error.line is None else f':{error.line}'}: {error}") from None
    if isinstance(values, list) or (isinstance(values, dict) and {"jobs", "grid", "defaults"} & set(values)):
        raise SpecError(f"spec: {str(path)!r} holds jobs; freescale batch {path}")
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds {str(values)[:60]!r}"
        raise SpecError(f"spec: {str(path)!r} {what}; a spec is a mapping of field names to values")
    return Written(path, values, lines)


def _similar(path: Path) -> str:
    """The file beside `path` whose name is the nearest, as words."""
    try:
        names = [found.name for found in path.parent.iterdir() if found.suffix.lower() in SPECS]
    except OSError:
        return ""
    near = nearest(path.name, names)
    return f"; did you mean {str(path.parent / near)!r}?" if near else ""
