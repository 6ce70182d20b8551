"""What a render reports while it runs, and the interface of those who watch it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.call import Call

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How one call of a plan ended: made in so many seconds, or found in the store."""

    call: Call
    key: str
    reused: bool
    seconds: float = 0.0
    resumed_at_step: int | None = None


class Observer(Protocol):
    """Watches a render: a terminal, a Prefect run, a test. Nothing it does decides a byte."""

    def started(self, call: Call, resumed_at: int | None) -> None:
        """A stage begins, or goes on at a step."""

    def stepped(self, call: Call, step: int) -> None:
        """A step of a long stage is done; `step` counts from 1."""

    def finished(self, outcome: Outcome) -> None:
        """A stage's artifact is there, made or found."""


class NullObserver:
    """An observer that does nothing."""

    def started(self, call: Call, resumed_at: int | None) -> None:
        """Ignore it."""

    def stepped(self, call: Call, step: int) -> None:
        """Ignore it."""

    def finished(self, outcome: Outcome) -> None:
        """Ignore it."""


class SafeObserver:
    """Passes what happens on to an observer. An error of that ends the watching, and never the work.

    `remarks` names what was lost since it was last asked: this observer's error, or the text in its attribute `lost`.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._error: str | None = None
        self._told: set[str] = set()

    def started(self, call: Call, resumed_at: int | None) -> None:
        """A stage begins, or goes on at a step."""
        self._pass(self.observer.started, call, resumed_at)

    def stepped(self, call: Call, step: int) -> None:
        """A step of a long stage is done; `step` counts from 1."""
        self._pass(self.observer.stepped, call, step)

    def finished(self, outcome: Outcome) -> None:
        """A stage's artifact is there, made or found."""
        self._pass(self.observer.finished, outcome)

    def remarks(self) -> tuple[str, ...]:
        """What was lost and not yet told."""
        found = (self._error, getattr(self.observer, "lost", None))
        new = tuple(text for text in found if text is not None and text not in self._told)
        self._told.update(new)
        return new

    def _pass(self, watch: Callable[..., None], *what: object) -> None:
        if self._error is not None:
            return
        try:
            watch(*what)
        except Exception as error:
            self._error = f"the progress was no longer shown: {type(error).__name__}: {error}"
            log.warning("%s", self._error)
