"""A full disk, wherever it is: which folder has no room, and how to wait until it has."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from storage import StoreFullError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

T = TypeVar("T")
SPARE_BYTES = 256 * 2**20  # of a disk, before work goes on after it was full; of a small disk a twentieth
NOTHING = 2**20  # bytes: a disk with less explains an error that does not name it
POLL_SECONDS = 0.5


def full_folder(error: BaseException, *folders: Path) -> Path | None:
    """The folder whose full disk explains `error`; None where no disk does.

    Looked at are the file that the error names, `folders`, and the folder for temporary files: a program that we call
    says in words of its own that it could not write.
    """
    causes = [cause for cause in _causes(error) if _is_full(cause)]
    names = [getattr(cause, "filename", None) for cause in causes]
    named = [_existing(Path(name)) for name in names if isinstance(name, str)]
    looked_at = [*named, *(_existing(folder) for folder in folders), Path(tempfile.gettempdir())]
    short = [folder for folder in looked_at if free_bytes(folder) < NOTHING]
    if short:
        return short[0]
    return min(looked_at, key=free_bytes) if causes else None


def with_room(work: Callable[[], T], halt: threading.Event, *folders: Path) -> T:
    """Do `work`, and again after each time that a full disk was why it failed, until `halt` is set.

    `folders` are those that it writes to. Raises what `work` raised for another reason.
    """
    while True:
        try:
            return work()
        except Exception as error:
            folder = None if halt.is_set() else full_folder(error, *folders)
            if folder is None:
                raise
            wait_for_room(folder, halt)


def wait_for_room(folder: Path, halt: threading.Event) -> None:
    """Wait until the disk of `folder` has room again, or until `halt` is set; at least `POLL_SECONDS`."""
    halt.wait(POLL_SECONDS)
    while free_bytes(folder) < _spare(folder) and not halt.wait(POLL_SECONDS):
        pass


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`; 0 where it has no room for another file."""
    disk = os.statvfs(folder)
    return 0 if disk.f_files and not disk.f_favail else disk.f_bavail * disk.f_frsize


def _spare(folder: Path) -> int:
    disk = os.statvfs(folder)
    return min(SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20)


def _existing(path: Path) -> Path:
    """The nearest folder above `path`, or `path`, that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _is_full(error: BaseException) -> bool:
    return isinstance(error, StoreFullError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
