"""The hashes by which people know model files: of the file (AutoV2), of its tensors (AutoV3), of one part (AutoV1).

Civitai and A1111 show the first 10 digits of a file's sha256. Pictures name LoRAs by the first 12 digits of the sha256
of what follows the header of a safetensors file, which stays the same when its metadata are edited.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, NamedTuple

from stages.models.cache_file import CacheFile
from stages.models.hashes import SETTLED_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 2**20
AUTO_V2, AUTO_V3 = 10, 12  # digits that are shown
LEAST = 8  # digits by which a file is told
OLD_START, OLD_LENGTH = 0x100000, 0x10000  # bytes of the file that A1111 hashed in 2022


class FileHash(NamedTuple):
    """The sha256 of a whole file, and of the bytes after its header; the second is empty for another format."""

    file: str
    tensors: str

    def begins(self, digits: str) -> bool:
        """Whether one of them begins with these hexadecimal digits; fewer than 8 tell nothing."""
        wanted = digits.lower()
        return len(wanted) >= LEAST and (self.file.startswith(wanted) or self.tensors.startswith(wanted))


class FileHashes:
    """Hashes of files, remembered in the home by path, size, modification time, time of change and inode."""

    def __init__(self, home: Path) -> None:
        self._known = CacheFile(home / "cache" / "file-hashes.json")

    def known(self, path: Path) -> FileHash | None:
        """Return the hashes of a file where they are remembered, without reading it. Raises `OSError`."""
        found = self._known.entries.get(_mark(path))
        return FileHash(*map(str, found)) if isinstance(found, list) and len(found) == 2 else None

    def of(self, path: Path) -> FileHash:
        """Return the hashes of a file, which is read once if they are not remembered. Raises `OSError`."""
        mark = _mark(path)
        if (found := self.known(path)) is not None:
            return found
        found = hashed(path)
        if time.time() - path.stat().st_ctime > SETTLED_SECONDS and _mark(path) == mark:
            self._known.put(mark, list(found))
            self._known.save()
        return found


def hashed(path: Path) -> FileHash:
    """Return the hashes of a file, read in one pass. Raises `OSError`."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    is_split = path.suffix.lower() in (".safetensors", ".sft")
    with path.open("rb") as file:
        start = file.read(8)
        header = int.from_bytes(start, "little")
        whole.update(start)
        while block := file.read(BLOCK):
            whole.update(block)
            skipped = min(header, len(block))
            header -= skipped
            tensors.update(block[skipped:])
    return FileHash(whole.hexdigest(), tensors.hexdigest() if is_split else "")


def old_hash(path: Path) -> str:
    """Return the 8 digits by which A1111 named checkpoints in 2022: of 64 KiB that begin at 1 MiB.

    A smaller file has none, which is an empty text. Raises `OSError`.
    """
    with path.open("rb") as file:
        file.seek(OLD_START)
        read = file.read(OLD_LENGTH)
    return hashlib.sha256(read).hexdigest()[:LEAST] if read else ""


def _mark(path: Path) -> str:
    stat = path.stat()
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"
