"""Kernel file locks (`flock`), the ground of every lease: they end with the process that holds them.

The file stays when the lock is gone; only the kernel knows who holds it, so nothing is stale after a crash. A
lock belongs to one opening of the file: two threads exclude each other like two processes, and a holder that
asks again waits for itself. A forked child inherits the lock, a spawned one does not. For local disks.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.durable import make_folder
from storage.errors import LeaseTimeoutError, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_SECONDS = 0.05


@contextmanager
def file_lock(
    path: Path, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock at `path` for the body of the `with`.

    While another holds it, `on_wait` hears every 50 ms how many seconds have passed, and gives up by raising;
    after `timeout` seconds `LeaseTimeoutError` is raised.
    """
    started = time.monotonic()
    with explained(path):
        make_folder(path.parent)
    while (descriptor := _try_lock(path)) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise LeaseTimeoutError(f"{path} is still locked by another process after {waited:.1f} s.")
        if on_wait is not None:
            on_wait(waited)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Return the descriptor that now holds the lock, or None if someone else does."""
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, descriptor):  # else the file was swept meanwhile, and others lock a new one
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
