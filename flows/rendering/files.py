"""Files for people: written whole or not at all, and left alone where they hold the wanted bytes already."""

from __future__ import annotations

import errno
import filecmp
import shutil
from typing import TYPE_CHECKING

from flows.home import check_folder
from stages.errors import SpecError
from storage import whole_file

if TYPE_CHECKING:
    from pathlib import Path


class _Tried(Exception):
    """A file could be written; it is taken away again."""


def check_target(field: str, path: Path) -> None:
    """Raise `SpecError`, naming `field`, where no file can be written to `path`; its folder is made.

    The file is written as `whole_file` writes it, and taken away again. What is at `path` stays as it is.
    """
    if path.is_dir():
        raise SpecError(f"{field}: {str(path)!r} is a folder; name a file in it")
    try:
        with whole_file(path) as partial:
            partial.touch()
            raise _Tried
    except _Tried:
        return
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SpecError(f"{field}: {path.name!r} is too long for a file's name; take 200 letters or less") from None
        why = (error.strerror or str(error)).lower()
        if isinstance(error, FileExistsError | NotADirectoryError):
            why = "it is no folder"
        raise SpecError(
            f"{field}: {str(path)!r} cannot be written, since {str(path.parent)!r} takes no file ({why}); "
            "name another folder"
        ) from None


def check_out_folder(field: str, path: Path) -> None:
    """Raise `SpecError`, naming `field`, where no file can be written into the folder `path`, which is made."""
    check_folder(field, path)
    check_target(field, path / "picture")


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
