"""Results of traces, kept in a file: what a trace found holds until the model, the stage or a library changes.

A trace needs diffusers, whose import takes longer than all the rest of `freescale plan`. So a second plan takes the
numbers of the first from the file, and imports nothing. Only what a trace returned is kept: one that fails leaves no
entry. The file is a cache: lost or damaged, it is made anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.models.cache_file import CacheFile
from stages.planner.apart import apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
VERSION = 2  # of what a trace counts: raised where the arithmetic of a trace changes
MOST = 4096  # entries in the file; the oldest go first
SHIPPED = Path(__file__).with_name("traces.json")
"""Results for the embedded models at usual sizes, so that a new home needs no trace of them.
`python -m benchmarks.ship_traces` writes it."""


_FILE: ContextVar[CacheFile | None] = ContextVar("traces", default=None)


@contextmanager
def trace_cache(path: Path) -> Iterator[None]:
    """Take the results of traces from the file `path` for the body of the `with`, and add new ones at its end."""
    token = _FILE.set(file := CacheFile(path))
    try:
        yield
    finally:
        _FILE.reset(token)
        file.save(MOST)


def cached_trace(trace: Callable[[], tuple[float, ...]], *what: object) -> tuple[float, ...]:
    """Return what `cached` returns; within `traced_apart` a process of its own calls `trace`, a `functools.partial`."""
    return cached(partial(apart, trace), *what)


def cached(measure: Callable[[], tuple[float, ...]], *what: object) -> tuple[float, ...]:
    """Return what `measure` returns: from the file where it was asked for the same `what`, else by calling it.

    `what` names all that the result depends on, beside torch and diffusers, in values that JSON has. Outside of
    `trace_cache` this is a call of `measure`.
    """
    file = _FILE.get()
    if file is None:
        return measure()
    key = hashlib.sha256(json.dumps([VERSION, _libraries(), what], sort_keys=True).encode()).hexdigest()
    found = file.entries.get(key, _shipped(SHIPPED).get(key))
    if not (isinstance(found, list) and all(isinstance(number, int | float) for number in found)):
        found = list(measure())
        file.put(key, found)
    return tuple(found)


@cache
def _shipped(path: Path) -> dict[str, Any]:
    """The entries that come with the package."""
    return CacheFile(path).entries


@cache
def _libraries() -> tuple[str, ...]:
    """Their public versions: the builds of torch for a CPU and for accelerators count alike."""
    return tuple(importlib.metadata.version(name).partition("+")[0] for name in ("torch", "diffusers"))
