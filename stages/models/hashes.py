"""Fingerprints of model folders: sha256 of all configuration and weight files, each hashed once and remembered."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from stages.models.cache_file import CacheFile

if TYPE_CHECKING:
    from pathlib import Path

NEVER_READ = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx")


class Hashes:
    """sha256 of files, remembered under the home by path, size and time."""

    def __init__(self, home: Path) -> None:
        self.known = CacheFile(home / "cache" / "hashes.json")

    def folders(self, root: Path, names: tuple[str, ...]) -> str:
        """Return one sha256 of all files of the named folders under `root` (an empty name: `root` itself)."""
        total = hashlib.sha256()
        for path in sorted(p for name in names for p in (root / name).glob("*") if p.is_file()):
            if path.suffix not in NEVER_READ:
                total.update(f"{path.relative_to(root)}={self._of(path)};".encode())
        self.known.save()
        return total.hexdigest()

    def _of(self, path: Path) -> str:
        stat = path.stat()
        mark = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if mark not in self.known.entries:
            with path.open("rb") as file:
                self.known.put(mark, hashlib.file_digest(file, "sha256").hexdigest())
        return str(self.known.entries[mark])
