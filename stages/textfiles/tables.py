"""CSV and its kin: rows with the line they begin in. Every line belongs to a row, to a fault, or is blank.

A table has a header. Its cells are parted by commas, semicolons, tabs or bars: by the character of a first line
`sep=;`, else by the one that finds the column that the table must have. Column names are read without regard to case,
blanks and hyphens.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.textfiles.text import UnreadableError, numbered_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DELIMITERS = (",", ";", "\t", "|")
SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A row: the line it begins in, and the text of every cell that is not blank, by its column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """Something in a file that cannot be read: its line, and what is wrong."""

    line: int
    says: str


@dataclass(frozen=True)
class _Record:
    """The cells between two ends of a row, and the lines from `first` to `last` that they stand in."""

    first: int
    last: int
    cells: list[str]


def read_table(text: str, must: str, delimiters: Sequence[str] = DELIMITERS) -> Iterator[Row | Fault]:
    """Yield the rows of a table that has a column `must`. A row that cannot be read is a `Fault`, and the next is read.

    `delimiters`: what cells may be parted by, the likeliest first. Raises `UnreadableError` for a header that is none.
    """
    lines = [line + "\n" for _, line in numbered_lines(text)]
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    if start < len(lines) and (said := SEPARATOR.fullmatch(lines[start].strip("\n"))):
        delimiters, start = [said[1]], start + 1
    header, delimiter = _header(lines, start, must, delimiters)
    for found in _records(lines, header.last, delimiter, len(header.cells)):
        if isinstance(found, Fault):
            yield found
        elif any(cell.strip() for cell in found.cells):
            yield _row(found, header.cells)


def _header(lines: list[str], start: int, must: str, delimiters: Sequence[str]) -> tuple[_Record, str]:
    """The header with its column names, and the delimiter under which it has the column `must`."""
    shown = ""
    for delimiter in delimiters:
        found = next(_records(lines, start, delimiter, None), None)
        if isinstance(found, Fault):
            raise UnreadableError(found.says, found.line)
        if found is None:
            raise UnreadableError(f"is empty; its first line names columns, one of them {must!r}")
        names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in found.cells]
        shown = shown or ", ".join(found.cells).strip()
        if must in names:
            twice = next((name for name in names if name and names.count(name) > 1), None)
            if twice is not None:
                raise UnreadableError(f"the column {twice!r} is there twice; one of the two would be lost", found.first)
            return _Record(found.first, found.last, names), delimiter
    raise UnreadableError(f"the first line names no column `{must}`; it is {shown[:80]!r}", start + 1)


def _row(found: _Record, header: list[str]) -> Row | Fault:
    """The cells of a record by their columns; a cell without a column is a fault."""
    cells = {}
    for number, cell in enumerate(found.cells):
        if not cell.strip():
            continue
        if number >= len(header):
            return Fault(
                found.first, f"more cells than the {len(header)} columns; quote a text that holds the separator"
            )
        if not header[number]:
            return Fault(found.first, f"{cell!r} stands in column {number + 1}, which has no name in the first line")
        cells[header[number]] = cell
    return Row(found.first, cells)


def _records(lines: list[str], start: int, delimiter: str, width: int | None) -> Iterator[_Record | Fault]:
    """The records from the line at index `start` on.

    After a record with a fault in its quotes, its further lines are tried one by one: each is a record of its own if it
    is whole and has `width` cells, and a fault otherwise.
    """
    while start < len(lines):
        rows = csv.reader(lines[start:], delimiter=delimiter, strict=True)
        done = 0
        try:
            for cells in rows:
                yield _Record(start + done + 1, start + rows.line_num, cells)
                done = rows.line_num
            return
        except csv.Error as error:
            first, last = start + done, start + rows.line_num
            yield Fault(first + 1, _explained(error))
            for number in range(first + 1, last):
                yield from _single(lines[number], number + 1, delimiter, width)
            start = max(last, first + 1)


def _single(line: str, number: int, delimiter: str, width: int | None) -> Iterator[_Record | Fault]:
    """The record in a line that a broken one before it ran into, if it is one for sure."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        yield Fault(number, _explained(error))
        return
    if line.count('"') % 2 or (any(cells) and len(cells) != width):
        yield Fault(number, "cannot be told from the row before, whose quotes are wrong")
    else:
        yield _Record(number, number, cells)


def _explained(error: csv.Error) -> str:
    says = str(error)
    if "unexpected end" in says or "larger than" in says:
        return "a quote that begins here is never closed; write a quote inside of a text as two"
    if "expected after" in says:
        return "there is text after a closing quote; write a quote inside of a text as two"
    return f"not a row: {says}"
