"""Kernel file locks (`flock`), on which every lease rests: they end with the process that holds them.

The file stays when the lock is gone; only the kernel knows who holds it, so nothing is stale after a crash. A lock
belongs to one opening of the file: two threads exclude each other like two processes, and a holder that asks again
waits for itself. A forked child inherits the lock, a spawned one does not. This works on local disks only.

A process that is stopped, or gets no CPU time, keeps its kernel locks. A `lease` therefore has a heartbeat: its holder
touches the file every `HEARTBEAT_SECONDS`. A process that has seen it untouched for two heartbeats replaces it by a
file of its own. Two holders do no harm: should the old one go on, both make the same bytes, and only time is lost.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from storage.durable import make_folder
from storage.errors import LeaseTimeoutError, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 0.05
HEARTBEAT_SECONDS = 10.0


class _Beat(NamedTuple):
    """The last sign of a lease's holder: which file is the lock, and when it was touched (its `mtime` in ns)."""

    inode: int
    touched: int


_heard: dict[Path, tuple[_Beat, float]] = {}  # of others' leases: the last beat, and since when, by our own clock


@contextmanager
def file_lock(
    path: Path, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock at `path` for the body of the `with`.

    While another holds it, `on_wait` is called every 50 ms with the seconds that have passed; it gives up by raising.
    After `timeout` seconds (None: never) `LeaseTimeoutError` is raised.
    """
    descriptor = _locked(path, _try_lock, on_wait, timeout)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lease(
    path: Path, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lease at `path` for the body of the `with`; arguments and errors as for `file_lock`.

    It is taken over from a holder that has given no sign for two heartbeats, by a process that has watched it for that
    long. A try that ends at its `timeout` counts: this process remembers what it saw for the next try.
    """
    descriptor, ended = _locked(path, _try_lease, on_wait, timeout), threading.Event()
    beating = threading.Thread(target=_beat, args=(path, descriptor, ended), name="heartbeat", daemon=True)
    try:
        with explained(path):
            os.utime(descriptor)  # the first beat; who has heard an earlier holder forgets it
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
    finally:
        os.close(descriptor)


def wait_for(
    attempt: Callable[[], T | None],
    taken: str,
    poll: float,
    on_wait: Callable[[float], None] | None,
    timeout: float | None,
) -> T:
    """Return the first result of `attempt` that is not None, tried every `poll` seconds.

    `on_wait` and `timeout` as for `file_lock`; `taken` begins the message of `LeaseTimeoutError`: what is held.
    """
    started = time.monotonic()
    while (found := attempt()) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise LeaseTimeoutError(f"{taken} by another process after {waited:.1f} s.")
        if on_wait is not None:
            on_wait(waited)
        time.sleep(poll)
    return found


def _locked(
    path: Path, attempt: Callable[[Path], int | None], on_wait: Callable[[float], None] | None, timeout: float | None
) -> int:
    """Return the descriptor that holds the lock, once `attempt` gets it."""
    if not path.parent.is_dir():
        with explained(path):
            make_folder(path.parent)
    return wait_for(lambda: attempt(path), f"{path} is still locked", POLL_SECONDS, on_wait, timeout)


def _try_lock(path: Path) -> int | None:
    """Return the descriptor that now holds the lock, or None if someone else does."""
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, descriptor):  # else the file was deleted meanwhile, and others lock a new one
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def _try_lease(path: Path) -> int | None:
    """Return the descriptor that now holds the lease, or None; a holder that is silent for too long loses it."""
    descriptor = _try_lock(path)
    if descriptor is None and (silent := _silent_beat(path)) is not None:
        descriptor = _take_over(path, silent)
    if descriptor is not None:
        _heard.pop(path, None)
    return descriptor


def _silent_beat(path: Path) -> _Beat | None:
    """Return the last beat of the lease's holder if two heartbeats have passed since without another, else None."""
    beat, now = _last_beat(path), time.monotonic()
    if beat is None:
        return None
    heard, since = _heard.setdefault(path, (beat, now))
    if heard != beat:
        _heard[path] = beat, now
        return None
    return beat if now - since >= 2 * HEARTBEAT_SECONDS else None


def _take_over(path: Path, silent: _Beat) -> int | None:
    """Replace the lock whose last beat was `silent` by a file that we hold; return None if another was faster."""
    with explained(path):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one successor at a time
            if _last_beat(path) != silent:
                return None
            successor = path.with_suffix(".successor")
            if (descriptor := _try_lock(successor)) is not None:
                try:
                    os.replace(successor, path)
                except BaseException:
                    os.close(descriptor)
                    raise
                log.warning("%s is taken over: its holder has been silent for %g s", path, 2 * HEARTBEAT_SECONDS)
            return descriptor
        except BlockingIOError:
            return None
        finally:
            os.close(folder)


def _beat(path: Path, descriptor: int, ended: threading.Event) -> None:
    """Touch the file of a lease until it `ended`; once it was taken over, nobody looks at that file."""
    while not ended.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(descriptor)
        except OSError as error:
            log.warning("%s may pass to another process: its heartbeat failed: %s", path, error)


def _last_beat(path: Path) -> _Beat | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return _Beat(state.st_ino, state.st_mtime_ns)


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
