"""A cache in a JSON file: what is in it saves time, and what is lost or damaged is made anew."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class CacheFile:
    """Entries by key, read from `path`. Anything but a JSON object there counts as an empty cache."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        self.entries: dict[str, Any] = found if isinstance(found, dict) else {}

    def put(self, key: str, value: Any) -> None:
        """Add an entry; `save` writes it."""
        self.entries[key] = value
        self.changed = True

    def save(self, most: int | None = None) -> None:
        """Write the file whole if an entry was added, with the `most` newest entries; None: all.

        A home that cannot be written is no error: the entries are made again.
        """
        if not self.changed:
            return
        kept = self.entries if most is None else dict(list(self.entries.items())[-most:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(kept), encoding="utf-8")
            partial.replace(self.path)
            self.changed = False
        except OSError as error:
            log.debug("%s was not written: %s", self.path, error)
