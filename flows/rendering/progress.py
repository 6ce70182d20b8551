"""How far a render is: the share of its work that is done and the seconds that are left, for whoever shows them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.call import Call
    from stages.observer import Outcome
    from stages.plan import Plan


@dataclass
class RenderProgress:
    """The work of a plan, counted while an observer tells of its stages. What was found costs no time.

    The unit of work is that of `Call.work`.
    """

    total: float
    done: float = 0.0
    made: float = 0.0  # of `done`, what this process made; the clock measures that
    began: float = field(default_factory=time.monotonic)
    _counted: dict[int, float] = field(default_factory=dict)  # work that is done of a call, by its id

    @classmethod
    def of(cls, plan: Plan) -> RenderProgress:
        """The progress of a plan of which nothing is done yet."""
        return cls(sum(call.work for call in plan.calls))

    def resumed(self, call: Call, step: int) -> None:
        """Count the steps before `step` as found: the stage goes on there."""
        first, last = call.stage.span
        self._count(call, call.work * (step - first) / max(last - first, 1), made=False)

    def stepped(self, call: Call) -> None:
        """Count one step of a stage as made."""
        first, last = call.stage.span
        self._count(call, call.work / max(last - first, 1), made=True)

    def finished(self, outcome: Outcome) -> None:
        """Count what is left of a stage as made, or as found where it was reused."""
        call = outcome.call
        self._count(call, call.work - self._counted.get(id(call), 0.0), made=not outcome.reused)

    @property
    def percent(self) -> float:
        """The share of the work that is done, from 0 to 100."""
        return min(100.0 * self.done / self.total, 100.0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the rate so far; None until this process has made something."""
        if self.made <= 0:
            return None
        return max(self.total - self.done, 0.0) * (time.monotonic() - self.began) / self.made

    def _count(self, call: Call, work: float, made: bool) -> None:
        self._counted[id(call)] = self._counted.get(id(call), 0.0) + work
        self.done += work
        self.made += work if made else 0.0
