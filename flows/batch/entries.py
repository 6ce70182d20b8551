"""The entries of jobs files: one reader a format. Every entry comes with its line, or is a fault with its line."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.textfiles.documents import read_json, read_yaml, value_of
from stages.textfiles.tables import DELIMITERS, Fault, Row, read_table
from stages.textfiles.text import UnreadableError, numbered_lines, read_text
from stages.textfiles.values import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MAX_BYTES = 64 * 2**20
TEXT = ("prompt", "negative_prompt", "name", "image", "model", "model.name", "model.revision")
"""Columns of text: a cell is what was written, whatever it looks like."""


@dataclass(frozen=True)
class Entry:
    """A job as it is written: its fields and those that hold where it does not name them, with their lines."""

    fields: dict[str, Any]
    lines: Lines
    defaults: dict[str, Any] = field(default_factory=dict)
    around: Lines | None = None  # of the defaults


def read_entries(file: Path) -> Iterator[Entry | Fault]:
    """Yield the jobs written in a file. Raises `UnreadableError` where nothing, or nothing more, can be read."""
    yield from READERS[file.suffix.lower()](read_text(file, MAX_BYTES))


def _prompts(text: str) -> Iterator[Entry]:
    for line, words in numbered_lines(text):
        if words.strip() and not words.lstrip().startswith("#"):
            yield Entry({"prompt": words.strip()}, Lines(line))


def _json_lines(text: str) -> Iterator[Entry | Fault]:
    for line, words in numbered_lines(text):
        if not words.strip():
            continue
        try:
            fields, _ = read_json(words)
        except UnreadableError as error:
            yield Fault(line, str(error))
            continue
        yield _entry(fields, Lines(line))


def _table(delimiters: Sequence[str]) -> Callable[[str], Iterator[Entry | Fault]]:
    def read(text: str) -> Iterator[Entry | Fault]:
        """The jobs of a table."""
        for row in read_table(text, "prompt", delimiters):
            if isinstance(row, Fault):
                yield row
                continue
            try:
                yield Entry(_nested(row), Lines(row.line))
            except UnreadableError as error:
                yield Fault(row.line, str(error))

    return read


def _nested(row: Row) -> dict[str, Any]:
    """The fields of a row: `method.detail_scale` is `detail_scale` of the mapping `method`; `method` is its name."""
    fields: dict[str, Any] = {}
    for column, cell in row.cells.items():
        try:
            value = cell if column in TEXT else value_of(cell)
        except UnreadableError as error:
            raise UnreadableError(f"{column}: {cell!r} is {error}") from None
        outer, _, inner = column.partition(".")
        if not inner and not any(other.startswith(f"{outer}.") for other in row.cells):
            fields[outer] = value
        elif not inner and not isinstance(value, str):
            raise UnreadableError(f"{column}: {cell!r} is not a name, and {column}.… are columns too")
        else:
            fields.setdefault(outer, {})[inner or "name"] = value
    return fields


def _document(read: Callable[[str], tuple[Any, Lines]]) -> Callable[[str], Iterator[Entry | Fault]]:
    """The reader of a list of jobs, of one spec, or of `defaults`, `jobs` and `grid`."""

    def entries(text: str) -> Iterator[Entry | Fault]:
        """The jobs of a document."""
        values, lines = read(text)
        if isinstance(values, dict) and "prompt" in values:
            yield Entry(values, lines)
        elif isinstance(values, list):
            yield from _items(values, lines, {}, None)
        elif isinstance(values, dict) and not set(values) - {"defaults", "jobs", "grid"} and values:
            yield from _parts(values, lines)
        else:
            what = "it is empty" if values is None else _unfit(values)
            raise UnreadableError(f"neither a list of jobs nor a mapping of `defaults`, `jobs` and `grid`: {what}")

    return entries


def _unfit(values: Any) -> str:
    if isinstance(values, dict):
        unknown = [str(key) for key in values if key not in ("defaults", "jobs", "grid")]
        return f"it has {', '.join(unknown[:3])} and no prompt"[:120]
    return f"it is {str(values)[:60]!r}"


def _parts(values: dict[str, Any], lines: Lines) -> Iterator[Entry | Fault]:
    """The jobs of a list `jobs` and of a `grid`, with the `defaults` of both."""
    defaults, around = values.get("defaults"), lines.inside.get("defaults")
    if defaults is None:
        defaults = {}
    if not isinstance(defaults, dict):
        raise UnreadableError("`defaults` is not a mapping of field names to values", lines.line_of("defaults"))
    if "jobs" in values:
        if not isinstance(values["jobs"], list):
            yield Fault(lines.line_of("jobs"), "`jobs` is not a list")
        else:
            yield from _items(values["jobs"], lines.inside["jobs"], defaults, around)
    if "grid" in values:
        grid = values["grid"]
        if not isinstance(grid, dict) or not grid or not all(isinstance(each, list) and each for each in grid.values()):
            yield Fault(lines.line_of("grid"), "`grid` is not a mapping of field names to lists of values")
            return
        for combination in itertools.product(*grid.values()):
            yield Entry(dict(zip(grid, combination, strict=True)), lines.inside["grid"], defaults, around)
    if "jobs" not in values and "grid" not in values:
        raise UnreadableError("`defaults` alone are no job; add `jobs` or `grid`")


def _items(values: list[Any], lines: Lines, defaults: dict[str, Any], around: Lines | None) -> Iterator[Entry | Fault]:
    for index, fields in enumerate(values):
        yield _entry({"prompt": fields} if isinstance(fields, str) else fields, lines.inside[index], defaults, around)


def _entry(
    fields: Any, lines: Lines, defaults: dict[str, Any] | None = None, around: Lines | None = None
) -> Entry | Fault:
    if isinstance(fields, dict):
        return Entry(fields, lines, defaults or {}, around)
    return Fault(lines.line, f"{str(fields)[:60]} is neither a prompt nor a mapping of field names to values")


_lists, _tables = _document(read_yaml), _table(DELIMITERS)
READERS: dict[str, Callable[[str], Iterator[Entry | Fault]]] = {
    ".yaml": _lists,
    ".yml": _lists,
    ".json": _document(read_json),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _tables,
    ".tsv": _table(("\t", *DELIMITERS)),
    ".tab": _table(("\t", *DELIMITERS)),
    ".txt": _prompts,
}
