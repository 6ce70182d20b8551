"""How a render is asked to stop between two steps, and why."""

from __future__ import annotations

import threading


class StopEvent(threading.Event):
    """An event that asks for a stop, with the reason for it: a signal's name, `cancelled`, `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.why: str | None = None

    def ask(self, why: str | None) -> None:
        """Set the event; the first reason given stays."""
        if not self.is_set():
            self.why = why
        self.set()

    def clear(self) -> None:
        """Take the request back."""
        self.why = None
        super().clear()
