"""How a render is asked to stop between two steps, and why."""

from __future__ import annotations

import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def stop_on_signals() -> StopEvent:
    """Return an event that SIGINT, SIGTERM and SIGHUP set: stop between two steps; a second one ends at once.

    A SIGHUP that the process was started to ignore, as by nohup, stays ignored.
    """
    stop = StopEvent()

    def ask(number: int, frame: object) -> None:
        """Ask for a stop; at the second signal raise `KeyboardInterrupt`."""
        if stop.is_set():
            raise KeyboardInterrupt
        stop.ask(signal.Signals(number).name)

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ask)
    return stop
