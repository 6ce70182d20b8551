"""Results of traces, kept in a file: what a trace found holds until the model, the stage or a library changes.

A trace needs diffusers, whose import takes longer than all the rest of `freescale plan`. So a second plan takes the
numbers of the first from the file, and imports nothing. Only what a trace returned is kept: one that fails leaves no
entry. The file is a cache: lost or damaged, it is made anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

VERSION = 1  # of what a trace counts: raised where the arithmetic of a trace changes
MOST = 4096  # entries in the file; the oldest go first


class _File:
    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        self.entries: dict[str, list[float]] = found if isinstance(found, dict) else {}

    def save(self) -> None:
        """Write the file whole. Without success the next trace is made again, so that is no error."""
        if not self.changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(dict(list(self.entries.items())[-MOST:])), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            log.debug("traces not kept: %s", error)


_FILE: ContextVar[_File | None] = ContextVar("traces", default=None)


@contextmanager
def trace_cache(path: Path) -> Iterator[None]:
    """Take the results of traces from the file `path` for the body of the `with`, and add new ones at its end."""
    token = _FILE.set(file := _File(path))
    try:
        yield
    finally:
        _FILE.reset(token)
        file.save()


def cached_trace(trace: Callable[[], tuple[float, ...]], *what: object) -> tuple[float, ...]:
    """Return what `trace` returns: from the file where it was asked for the same `what`, else by calling it.

    `what` names all that the result depends on, beside torch and diffusers, in values that JSON has. Outside of
    `trace_cache` this is a call of `trace`.
    """
    file = _FILE.get()
    if file is None:
        return trace()
    key = hashlib.sha256(json.dumps([VERSION, _libraries(), what], sort_keys=True).encode()).hexdigest()
    found = file.entries.get(key)
    if not (isinstance(found, list) and all(isinstance(number, int | float) for number in found)):
        found = file.entries[key] = list(trace())
        file.changed = True
    return tuple(found)


@cache
def _libraries() -> tuple[str, ...]:
    return tuple(importlib.metadata.version(name) for name in ("torch", "diffusers"))
