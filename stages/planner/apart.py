"""Traces in a process of their own, which imports of diffusers what a trace uses alone (`light_import.py`).

That import leaves stand-ins behind, so it has no place in a process that may render. A command that only plans begins
with `traced_apart`. What cannot be traced there, for whatever reason, is traced here, by the plain import.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from stages.errors import SpecError
from stages.planner.light_import import import_lightly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Child:
    """A process that traces; it begins at the first trace and ends with the connection to it."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None
        self._failed = False

    def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, from the process or, where that fails, by calling it. Raises its `SpecError`."""
        if self._failed or "diffusers" in sys.modules:
            return work()
        try:
            answer = self._answer(work)
        except (EOFError, OSError) as error:
            answer = error
        if isinstance(answer, SpecError):
            raise answer
        if isinstance(answer, Exception):
            log.debug("a trace is made by the plain import: %r", answer)
            self._failed = True
            return work()
        return answer

    def _answer(self, work: Callable[[], T]) -> T | Exception:
        if self._connection is None:
            import multiprocessing  # here, since a second plan needs none

            # A fork has all modules, but a torch that has worked may hang in it.
            context: Any = multiprocessing.get_context("fork" if _may_fork() else "spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._connection), daemon=True)
            self._process.start()
            theirs.close()
        self._connection.send(work)
        answer: T | Exception = self._connection.recv()
        return answer

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _may_fork() -> bool:
    return sys.platform == "linux" and "torch._C" not in sys.modules


def _serve(connection: Connection, theirs: Connection) -> None:
    """Answer each piece of work with what it returns or the exception that it raises, until the other end closes."""
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a word
    import_lightly()
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        try:
            answer = work()
        except Exception as error:
            answer = error
        connection.send(answer)


_CHILD: ContextVar[_Child | None] = ContextVar("child", default=None)


@contextmanager
def traced_apart() -> Iterator[None]:
    """Let `apart` run its work in a process of its own for the body, one for all."""
    token = _CHILD.set(child := _Child())
    try:
        yield
    finally:
        _CHILD.reset(token)
        child.close()


def apart(work: Callable[[], T]) -> T:
    """Return what `work` returns, a function of a module with its arguments, from a process of its own if there is one.

    Raises the `SpecError` that it raises.
    """
    child = _CHILD.get()
    return work() if child is None else child.run(work)
