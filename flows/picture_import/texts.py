"""The texts in a picture's file: chunks of a PNG, EXIF of JPEG, WebP and others. No pixel is decoded, nothing is run.

A file comes from anywhere: what is read of it is bounded, and a damaged one is one sentence.
"""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from flows.home import user_path
from stages.errors import SpecError, cause
from stages.media.png import SIGNATURE
from stages.textfiles.text import UnreadableError, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from PIL import Image

MAX_TEXT = 16 * 2**20  # bytes of all texts of one picture, unpacked
MAX_PLAIN = 2**20  # bytes of a file that is text itself
MAX_CHUNKS = 100_000
PASTED = "pasted"  # the key of a text that is no picture's
MARKS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"GIF8", b"BM")
EXIF, USER_COMMENT = 0x8769, 0x9286
DESCRIPTION, SOFTWARE = 0x010E, 0x0131  # in the first, this program writes a spec into TIFF and WebP
CODES = {b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp"}


@dataclass(frozen=True)
class PictureTexts:
    """The texts of a picture by their keys, and its size (height, width) in pixels; None: it is no picture."""

    by_key: Mapping[str, str]
    size: tuple[int, int] | None = None


def read_texts(what: str) -> PictureTexts:
    """Return the texts of a picture; the text of a file or of `-`, the standard input, is under `PASTED`.

    Raises `SpecError` for a file that cannot be read, and for one that is neither a picture nor a text.
    """
    if what == "-":
        return PictureTexts({PASTED: _plain("standard input", sys.stdin.buffer.read(MAX_PLAIN + 1))})
    if not what.strip():
        raise SpecError(f"picture: {what!r} is no name; name a picture, a text file, or - for standard input")
    path = user_path(what)
    try:
        if path.is_dir():
            raise SpecError(f"picture: {what!r} is a folder; name a picture in it, or a text file")
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(SIGNATURE):
                return _png(what, file)
            if start.startswith(MARKS) or start[4:8] == b"ftyp":
                return _other(what, path)
            return PictureTexts({PASTED: _plain(what, file.read(MAX_PLAIN + 1))})
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"picture: {what!r} cannot be read: {cause(error)}") from None


def _plain(what: str, data: bytes) -> str:
    if len(data) > MAX_PLAIN:
        raise SpecError(f"picture: {what!r} is no picture, and too large for a text of parameters (1 MiB at the most)")
    try:
        return decoded(data)
    except UnreadableError as error:
        raise SpecError(f"picture: {what!r} is no picture that is read here, and no text either: {error}") from None


def _png(what: str, file: BinaryIO) -> PictureTexts:
    """The texts of a PNG, before and after its pixels, which are skipped."""
    found: dict[str, str] = {}
    pixels: tuple[int, int] | None = None
    size = os.fstat(file.fileno()).st_size
    file.seek(len(SIGNATURE))
    left = MAX_TEXT
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break  # a picture that is cut off may still have its texts
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND" or file.tell() + length > size:
            break
        if kind == b"IHDR" and length == 13:
            width, height = struct.unpack(">II", file.read(8))
            pixels = height, width
            file.seek(9, os.SEEK_CUR)
            continue
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        if length > left:
            raise SpecError(f"picture: {what!r} has texts of more than {MAX_TEXT >> 20} MiB")
        data = file.read(length)
        file.seek(4, os.SEEK_CUR)
        try:
            texts = _exif_chunk(data) if kind == b"eXIf" else dict([_chunk_text(kind, data, left)])
        except (ValueError, zlib.error):
            continue  # one damaged text is as if it were not there
        left -= sum(len(text) for text in texts.values())
        found = {**texts, **found}
    return PictureTexts(found, pixels)


def _chunk_text(kind: bytes, data: bytes, most: int) -> tuple[str, str]:
    """The key and the text of one chunk. Raises `ValueError` or `zlib.error` for a damaged one."""
    key, _, rest = data.partition(b"\0")
    if kind == b"zTXt":
        rest = _unpacked(rest[1:], most)
    elif kind == b"iTXt":
        packed, rest = rest[:1], rest[2:]
        rest = rest.split(b"\0", 2)[2] if rest.count(b"\0") >= 2 else b""
        rest = _unpacked(rest, most) if packed == b"\1" else rest
    try:
        text = rest.decode("utf-8")  # some programs write it where the format says Latin-1
    except UnicodeDecodeError:
        text = rest.decode("latin-1")
    return key.decode("latin-1"), text


def _unpacked(data: bytes, most: int) -> bytes:
    unpacked = zlib.decompressobj().decompress(data, most + 1)
    if len(unpacked) > most:
        raise ValueError("it is too large")
    return unpacked


def _other(what: str, path: Path) -> PictureTexts:
    """The texts of a picture in another format."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                found = _exif_texts(picture.getexif())
                comment, size = picture.info.get("comment"), (picture.height, picture.width)
    except UnidentifiedImageError:
        raise SpecError(f"picture: {what!r} is no picture that is read here, such as PNG, JPEG and WebP") from None
    except Image.DecompressionBombError:
        raise SpecError(f"picture: {what!r} has too many pixels for its format to be read here") from None
    except Exception as error:  # Pillow's readers have many for damaged files
        raise SpecError(f"picture: {what!r} cannot be read: {cause(error)}") from None
    if isinstance(comment, bytes | str) and "comment" not in found:
        found["comment"] = comment if isinstance(comment, str) else comment.decode("utf-8", "replace")
    return PictureTexts({key: text for key, text in found.items() if len(text) <= MAX_TEXT}, size)


def _exif_chunk(data: bytes) -> dict[str, str]:
    """The texts of EXIF in a PNG. Raises `ValueError` for a damaged one."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data)
        return _exif_texts(exif)
    except Exception as error:  # as above
        raise ValueError(str(error)) from None


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    """The comment of A1111, the tags of ComfyUI (`prompt:{…}`), and the description that this program writes."""
    found = dict(_tag_texts(exif))
    comment = exif.get_ifd(EXIF).get(USER_COMMENT)
    if isinstance(comment, bytes | str):
        found["UserComment"] = comment if isinstance(comment, str) else user_comment(comment)
    return found


def _tag_texts(exif: Image.Exif) -> Iterator[tuple[str, str]]:
    for tag, value in exif.items():
        if not isinstance(value, str):
            continue
        key, colon, text = value.partition(":")
        if colon and key in ("prompt", "workflow"):
            yield key, text
        elif tag == DESCRIPTION:
            yield ("freescale" if value.startswith('{"freescale"') else "Description"), value
        elif tag == SOFTWARE:
            yield "Software", value


def user_comment(data: bytes) -> str:
    """Return the text of EXIF's `UserComment`: its first 8 bytes name the encoding; UTF-16 is in either order."""
    code, body = data[:8], data[8:]
    if code == b"UNICODE\0":
        is_little = body.startswith(b"\xff\xfe") or body[1::2].count(0) > body[::2].count(0)
        return body.decode("utf-16-le" if is_little else "utf-16-be", "replace").lstrip("\ufeff").rstrip("\0")
    return (body if code in CODES else data).decode(CODES.get(code, "utf-8"), "replace").strip("\0")
