"""What a store stands on: a folder of this machine, or a bucket (`storage.bucket`) with working copies in a folder.

A backend holds records (`manifests/ab/<key>.json`) and data folders (`data/<uuid>`), by names relative to its root. A
folder is filled on the local disk and then kept; a record that refers to it is written after it, in one instant.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from storage.durable import make_folder, put_in_place
from storage.errors import explained
from storage.locks import lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from storage.manifest import FileRecord


class Entry(NamedTuple):
    """A record or folder of a backend: its name, its size in bytes, and when anything in it last changed."""

    name: str
    bytes: int
    changed: datetime


class Backend(Protocol):
    """The operations that a store needs. Names are relative to the backend's root, with `/` between their parts.

    `root` is a local folder for drafts and copies. `machine` is a local folder that every backend of a home shares, for
    the locks on what this machine's processes share: its accelerators. Every operation raises `StoreAccessError` where
    the bytes cannot be reached, and `StoreFullError` where there is no room for them.
    """

    root: Path
    machine: Path

    def where(self, name: str) -> str:
        """Return the path or the address of `name`, for messages."""

    def get(self, name: str) -> bytes:
        """Return the bytes of a record. Raises `FileNotFoundError`."""

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Make a record hold `data`, in one instant. With `exclusive`: raise `FileExistsError` if the name is taken."""

    def delete(self, name: str) -> None:
        """Delete a record, if it exists."""

    def names(self, pattern: str) -> list[str]:
        """Return the records that match a pattern such as `manifests/??/*.json`, sorted; `*` and `?` match no slash."""

    def keep(self, folder: str, files: Iterable[str] | None = None) -> None:
        """Make a folder that was filled under `root` part of the backend: all its files, or those of `files`."""

    def fetch(self, folder: str, files: Mapping[str, FileRecord]) -> Path:
        """Return a local folder with the files of a kept one.

        A file that the backend has lost is missing, one that was damaged differs from its record: the caller checks.
        """

    def discard(self, folder: str) -> None:
        """Delete a folder and its local copy, as far as that is possible."""

    def move(self, name: str, folder: str) -> None:
        """Move a record or a folder, if it exists, into the folder `folder`."""

    def entries(self, pattern: str) -> list[Entry]:
        """Return the records and folders that match a pattern such as `data/*`, each with the size of all in it."""

    def lease(
        self, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Hold the lease `name` for the body of the `with`. Arguments and errors as for `storage.locks.lease`."""


class Disk:
    """A backend on a local disk: the folder `root`."""

    def __init__(self, root: Path | str) -> None:
        self.root = self.machine = Path(root)

    def where(self, name: str) -> str:
        """Return the path of `name`."""
        return str(self.root / name)

    def get(self, name: str) -> bytes:
        """Return the bytes of the file. Raises `FileNotFoundError`."""
        with explained(self.root / name):
            return (self.root / name).read_bytes()

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Write a new file beside it, flush it, rename it to `name` and flush the folder."""
        path = self.root / name
        with explained(path):
            make_folder(path.parent)
            put_in_place(path, data, exclusive=exclusive)

    def delete(self, name: str) -> None:
        """Delete the file, if it exists."""
        with explained(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def names(self, pattern: str) -> list[str]:
        """Return the paths below the root that match."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))

    def keep(self, folder: str, files: Iterable[str] | None = None) -> None:
        """Do nothing: the folder was flushed where it lies."""

    def fetch(self, folder: str, files: Mapping[str, FileRecord]) -> Path:
        """Return the folder itself, not a copy."""
        return self.root / folder

    def discard(self, folder: str) -> None:
        """Delete the folder and all that is in it, as far as that is possible."""
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def move(self, name: str, folder: str) -> None:
        """Rename it into `folder`."""
        with explained(self.root / folder):
            make_folder(self.root / folder)
            with suppress(FileNotFoundError):
                (self.root / name).rename(self.root / folder / Path(name).name)

    def entries(self, pattern: str) -> list[Entry]:
        """Return sizes and times of the paths that match, over all that is in them."""
        paths = sorted(self.root.glob(pattern))
        return [Entry(path.relative_to(self.root).as_posix(), *_looked_at(path)) for path in paths]

    def lease(
        self, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Hold a kernel lock with a heartbeat: it ends with the process, and is taken over when that is stopped."""
        return lease(self.root / "locks" / f"{name}.lock", on_wait=on_wait, timeout=timeout)


def backend_of(where: Path | str | Backend) -> Backend:
    """Return a backend as it is, or the `Disk` at a path."""
    return Disk(where) if isinstance(where, str | Path) else where


def _looked_at(path: Path) -> tuple[int, datetime]:
    """Return bytes and last change. What is gone meanwhile has no bytes and changed now."""
    total, last = 0, 0.0
    for inner in (path, *path.rglob("*")):
        try:
            found = inner.stat()
        except FileNotFoundError:
            continue
        total += found.st_size if inner.is_file() else 0
        last = max(last, found.st_mtime)
    return total, datetime.fromtimestamp(last, UTC) if last else datetime.now(UTC)
