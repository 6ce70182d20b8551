"""Fingerprints of models: sha256 of the files that are loaded, each hashed once and remembered."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from stages.models.cache_file import CacheFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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
        stat = path.stat()
        mark = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"
        if mark in self.known.entries:
            return str(self.known.entries[mark])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - stat.st_ctime > SETTLED_SECONDS:
            self.known.put(mark, found)
        return found


def with_decided(fingerprint: str, decisive: Mapping[str, Any]) -> str:
    """Return a part's fingerprint with what else decides its bytes."""
    return hashlib.sha256(f"{fingerprint};{json.dumps(decisive, sort_keys=True)}".encode()).hexdigest()
