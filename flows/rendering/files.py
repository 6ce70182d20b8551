"""Files for people: written whole or not at all, and left alone where they hold the wanted bytes already."""

from __future__ import annotations

import filecmp
import shutil
from typing import TYPE_CHECKING

from storage import whole_file

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(data: bytes, path: Path) -> Path:
    """Write `data` to `path`, whole or not at all, flushed to the disk; return `path`.

    A file that holds these bytes already is left alone. Raises `StoreFullError` where the disk has no room.
    """
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return path
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return path


def copy_whole(source: Path, path: Path) -> Path:
    """Copy the file `source` to `path`, whole or not at all, flushed to the disk; return `path`.

    A file that holds these bytes already is left alone. Raises `StoreFullError` where the disk has no room.
    """
    if path.is_file() and filecmp.cmp(source, path, shallow=False):
        return path
    with whole_file(path) as partial:
        shutil.copyfile(source, partial)
    return path
