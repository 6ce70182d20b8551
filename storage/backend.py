"""Where a store's bytes lie: a folder of this machine, or a bucket (`storage.bucket`) with working copies in a folder.

A place holds records (`manifests/ab/<key>.json`) and data folders (`data/<uuid>`), by names relative to its root. A
folder is filled on the local disk and then kept; a record that refers to it comes after, in one instant.
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
    """Something in a place: its name, the bytes of all in it, and when any of that last changed."""

    name: str
    bytes: int
    changed: datetime


class Backend(Protocol):
    """What a store needs of the ground it stands on.

    `root` is a local folder, for drafts and copies; `machine` one that is the same for every place of a home, for what
    this machine's processes share: its accelerators.
    """

    root: Path
    machine: Path

    def where(self, name: str) -> str:
        """A name as a person finds it."""

    def get(self, name: str) -> bytes:
        """A record. Raises `FileNotFoundError`."""

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Make a record hold `data`, in one instant; `exclusive`: raise `FileExistsError` if the name is taken."""

    def delete(self, name: str) -> None:
        """Delete a record, if it is there."""

    def names(self, pattern: str) -> list[str]:
        """The records of a pattern such as `manifests/??/*.json`, sorted; `*` and `?` stop at a slash."""

    def keep(self, folder: str, files: Iterable[str] | None = None) -> None:
        """Make a folder that was filled under `root` part of the place, every file of it or those that are named."""

    def fetch(self, folder: str, files: Mapping[str, FileRecord]) -> Path:
        """A local folder with the files of a kept one; what the place has lost or damaged is missing or differs."""

    def discard(self, folder: str) -> None:
        """Delete a folder and its local copy, as far as that is possible."""

    def move(self, name: str, folder: str) -> None:
        """Move a record or a folder, if it is there, into another folder."""

    def entries(self, pattern: str) -> list[Entry]:
        """The records and folders of a pattern such as `data/*`, each with all that is in it."""

    def lease(
        self, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Be the only one that holds `name`; arguments as for `storage.locks.lease`."""


class Disk:
    """A folder of a local disk."""

    def __init__(self, root: Path | str) -> None:
        self.root = self.machine = Path(root)

    def where(self, name: str) -> str:
        """The path."""
        return str(self.root / name)

    def get(self, name: str) -> bytes:
        """The file's bytes."""
        with explained(self.root / name):
            return (self.root / name).read_bytes()

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Written beside its place, flushed, put there, and its folder flushed."""
        path = self.root / name
        with explained(path):
            make_folder(path.parent)
            put_in_place(path, data, exclusive=exclusive)

    def delete(self, name: str) -> None:
        """The file, if it is there."""
        with explained(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def names(self, pattern: str) -> list[str]:
        """Paths below the root."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))

    def keep(self, folder: str, files: Iterable[str] | None = None) -> None:
        """Nothing to do: the folder was flushed where it lies."""

    def fetch(self, folder: str, files: Mapping[str, FileRecord]) -> Path:
        """The folder itself."""
        return self.root / folder

    def discard(self, folder: str) -> None:
        """The tree."""
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def move(self, name: str, folder: str) -> None:
        """A rename."""
        with explained(self.root / folder):
            make_folder(self.root / folder)
            with suppress(FileNotFoundError):
                (self.root / name).rename(self.root / folder / Path(name).name)

    def entries(self, pattern: str) -> list[Entry]:
        """Sizes and times of all inner paths."""
        paths = sorted(self.root.glob(pattern))
        return [Entry(path.relative_to(self.root).as_posix(), *_looked_at(path)) for path in paths]

    def lease(
        self, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """A kernel lock with a heartbeat: gone with the process, or taken over when that is stopped."""
        return lease(self.root / "locks" / f"{name}.lock", on_wait=on_wait, timeout=timeout)


def backend_of(where: Path | str | Backend) -> Backend:
    """A place as it is, or the folder at a path."""
    return Disk(where) if isinstance(where, str | Path) else where


def _looked_at(path: Path) -> tuple[int, datetime]:
    """Bytes, and the last change; of what is gone meanwhile nothing, as if it were new."""
    total, last = 0, 0.0
    for inner in (path, *path.rglob("*")):
        try:
            found = inner.stat()
        except FileNotFoundError:
            continue
        total += found.st_size if inner.is_file() else 0
        last = max(last, found.st_mtime)
    return total, datetime.fromtimestamp(last, UTC) if last else datetime.now(UTC)
