"""Fingerprints of model folders: sha256 of all configuration and weight files, each hashed once and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)
NEVER_READ = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx")


class Hashes:
    """sha256 of files, remembered under the home by path, size and time."""

    def __init__(self, home: Path) -> None:
        self.remembered_at = home / "cache" / "hashes.json"
        try:
            self.known: dict[str, str] = json.loads(self.remembered_at.read_text())
        except (OSError, ValueError):
            self.known = {}

    def folders(self, root: Path, names: tuple[str, ...]) -> str:
        """Return one sha256 of all files of the named folders under `root` (an empty name: `root` itself)."""
        before, total = len(self.known), hashlib.sha256()
        for path in sorted(p for name in names for p in (root / name).glob("*") if p.is_file()):
            if path.suffix not in NEVER_READ:
                total.update(f"{path.relative_to(root)}={self._of(path)};".encode())
        if len(self.known) != before:
            self._remember()
        return total.hexdigest()

    def _of(self, path: Path) -> str:
        stat = path.stat()
        mark = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if mark not in self.known:
            with path.open("rb") as file:
                self.known[mark] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.known[mark]

    def _remember(self) -> None:
        """Save the hashes as far as that is possible: a read-only home costs seconds, and is no error."""
        try:
            self.remembered_at.parent.mkdir(parents=True, exist_ok=True)
            partial = self.remembered_at.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(self.known))
            partial.replace(self.remembered_at)
        except OSError as error:
            log.debug("hashes not remembered: %s", error)
