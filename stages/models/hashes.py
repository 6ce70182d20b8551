"""Fingerprints of models: sha256 of the files that are loaded, each hashed once and remembered."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from stages.models.cache_file import CacheFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SETTLED_SECONDS = 2.0  # a file changed later than this before it is hashed may change again within one tick of its time


class Hashes:
    """sha256 of files, remembered under the home by path, size, time of change and inode.

    The time of change (ctime) is set by the system alone: a file that was overwritten is hashed again, whatever size
    and modification time it was given.
    """

    def __init__(self, home: Path) -> None:
        self.known = CacheFile(home / "cache" / "hashes.json")

    def files(self, root: Path, paths: Iterable[Path]) -> str:
        """Return one sha256 of the names under `root` and the contents of these files."""
        total = hashlib.sha256()
        for path in sorted(paths):
            total.update(f"{path.relative_to(root)}={self._of(path)};".encode())
        self.known.save()
        return total.hexdigest()

    def _of(self, path: Path) -> str:
        mark = file_mark(path)
        if mark in self.known.entries:
            return str(self.known.entries[mark])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if is_settled(path):
            self.known.put(mark, found)
        return found


def file_mark(path: Path) -> str:
    """Return what a file is recognised by without reading it: path, size, times and inode."""
    stat = path.stat()
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def is_settled(path: Path) -> bool:
    """Whether a file was changed so long ago that another change would give it another mark."""
    return time.time() - path.stat().st_ctime > SETTLED_SECONDS
