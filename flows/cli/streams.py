"""Standard output and error that never raise: a closed terminal, a broken pipe or a full disk ends no work."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator


class SafeStream:
    """A text stream on top of another. What cannot be written is dropped; `lost` says why, the first time."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of a stream whose file was replaced by a pipe
                stream.reconfigure(errors="backslashreplace")  # a name that its encoding lacks ends no command
        self._stream = stream
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write `text` if that is possible; return its length in characters."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._note(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered, if that is possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._note(error)

    def silence(self) -> None:
        """Where something was lost, let what is still buffered go nowhere: Python writes it at the exit."""
        if self.lost is not None:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        if self.lost is None:
            self.lost = f"{getattr(self._stream, 'name', 'the output')} could not be written: {error}"


@contextmanager
def safe_streams() -> Iterator[None]:
    """Have `sys.stdout` and `sys.stderr` never raise while the body runs."""
    plain = sys.stdout, sys.stderr
    safe = tuple(SafeStream(stream) for stream in plain)
    sys.stdout, sys.stderr = (cast("TextIO", stream) for stream in safe)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
            stream.silence()
        sys.stdout, sys.stderr = plain
