"""Writes that survive a crash: the few ways in which this package writes to a disk.

A file is complete before it gets its name, and its bytes and its folder entry are flushed (`fsync`) before
anything refers to it. Hashes are BLAKE2b with 32 bytes.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def digest(data: bytes) -> str:
    """Return the hash of `data` (64 hex digits)."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def file_digest(path: Path, *, flush: bool = False) -> tuple[int, str]:
    """Return size in bytes and hash of the file at `path`; with `flush` it is flushed to the disk first."""
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        hashed = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        return file.tell(), hashed


def flush_file(path: Path) -> None:
    """Flush the bytes of the file at `path`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_folder(path: Path) -> Path:
    """Return `path`, made with its parents where missing, with its entry flushed.

    The entry of a folder that exists is flushed too: the process that made it may have died before the flush.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    flush_folder(path.parent)
    return path


def flush_folder(path: Path) -> None:
    """Flush the entries of the folder at `path`: which names it holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write `data` to a new file and flush it, but not the entry in its folder. Raises `FileExistsError`."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path, suffix: str = ".partial") -> Iterator[Path]:
    """Give a path beside `path` to write to; a clean exit of the `with` renames it to `path`, else it is deleted.

    `suffix` is that of the file that is written to, for programs that choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Make the file at `path` hold `data`; at every instant readers see the whole old file or the whole new one.

    `exclusive`: raise `FileExistsError` if the name is taken; of many that try at once exactly one succeeds.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write_new(partial, data)
        (os.link if exclusive else os.replace)(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)
