"""The text of a file: UTF-8, or UTF-16 and UTF-32 with a byte order mark; anything else is named with its line."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from stages.errors import SpecError, cause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKS = (  # the longest first: the mark of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ARCHIVES = (  # how files begin that hold text only after they are unpacked
    (b"PK\x03\x04", "a zip archive or a spreadsheet; save the table as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document; save the table as CSV in UTF-8"),
    (b"\x1f\x8b", "packed by gzip; unpack it first"),
)


class UnreadableError(SpecError):
    """A text file of which nothing, or nothing more, can be read: what is wrong, and in which line."""

    def __init__(self, says: str, line: int | None = None) -> None:
        """Keep the line, which is None where the whole file is meant."""
        super().__init__(says)
        self.line = line


def read_text(path: Path, most: int) -> str:
    """Return the text of a file of up to `most` bytes, with `\\n` at the end of its lines.

    Raises `UnreadableError` for a file that is larger, is no text, or is in an encoding that it does not say.
    """
    try:
        if path.stat().st_size > most:
            raise UnreadableError(f"is larger than {most // 2**20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {cause(error)}") from None
    return re.sub("\r\n?", "\n", decoded(data))


def decoded(data: bytes) -> str:
    """Return the bytes of a file as text. Raises `UnreadableError` with the line of the first byte that is none."""
    for start, what in ARCHIVES:
        if data.startswith(start):
            raise UnreadableError(f"is {what}")
    codec = next((codec for mark, codec in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        raise _not_text(data, error, codec) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UnreadableError("holds zero bytes: UTF-16 without a byte order mark, or no text; save it as UTF-8", line)
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers, from 1. A line ends at a newline and at nothing else."""
    yield from enumerate(text.removesuffix("\n").split("\n"), 1)


def _not_text(data: bytes, error: UnicodeDecodeError, codec: str) -> UnreadableError:
    """Where the bytes of a file stop being text, and how the line reads in the encoding that Windows often uses."""
    line = data[: error.start].decode(codec, "replace").count("\n") + 1
    if codec != "utf-8":
        return UnreadableError(f"is not whole {codec.removesuffix('-sig').upper()}; save it as UTF-8", line)
    begins, ends = data.rfind(b"\n", 0, error.start) + 1, data.find(b"\n", error.start)
    written = data[begins : ends if ends >= 0 else len(data)].strip()
    says = f"byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8"
    try:
        guess = written.decode("cp1252")
    except UnicodeDecodeError:
        return UnreadableError(says, line)
    if not guess.isprintable():
        return UnreadableError(says, line)
    return UnreadableError(f"{says} (as Windows-1252 the line reads {guess[:60]!r})", line)
