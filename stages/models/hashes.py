"""Fingerprints of models: sha256 of the files that are loaded, each hashed once and remembered."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from stages.models.cache_file import CacheFile

if TYPE_CHECKING:
    import os
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

    def known_part(self, path: Path, part: str) -> str | None:
        """Return what `put_parts` was given for a part of a file that has not changed since; None for nothing."""
        found = self.known.entries.get(f"{_mark(path.stat(), path)}:{part}")
        return None if found is None else str(found)

    def put_parts(self, path: Path, found: Mapping[str, str]) -> None:
        """Remember the hashes of parts of a file, by part."""
        stat = path.stat()
        if _is_settled(stat):
            for part, each in found.items():
                self.known.put(f"{_mark(stat, path)}:{part}", each)
            self.known.save()

    def _of(self, path: Path) -> str:
        stat = path.stat()
        mark = _mark(stat, path)
        if mark in self.known.entries:
            return str(self.known.entries[mark])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if _is_settled(stat):
            self.known.put(mark, found)
        return found


def with_decided(fingerprint: str, decisive: Mapping[str, Any]) -> str:
    """Return a part's fingerprint with what else decides its bytes."""
    return hashlib.sha256(f"{fingerprint};{json.dumps(decisive, sort_keys=True)}".encode()).hexdigest()


def _mark(stat: os.stat_result, path: Path) -> str:
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


def _is_settled(stat: os.stat_result) -> bool:
    return time.time() - stat.st_ctime > SETTLED_SECONDS
