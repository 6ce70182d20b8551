"""What a render reports while it runs, and the interface of those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stages.call import Call


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
