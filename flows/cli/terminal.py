"""What a person sees while a render runs: one line a stage, a bar with seconds left where there is a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from stages.call import Call
    from stages.observer import Outcome
    from stages.plan import Plan


@dataclass
class Pace:
    """Share of a plan done and seconds left, from the work of its calls; found artifacts count as done at no cost."""

    total: float
    done: float = 0.0
    spent: float = 0.0  # work made in this process, which the clock measures
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, plan: Plan) -> Pace:
        """All the work of a plan ahead."""
        return cls(sum(call.work for call in plan.calls))

    def add(self, work: float, made: bool) -> None:
        """Some work is behind us, made now or found."""
        self.done += work
        self.spent += work if made else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None until something was made that tells how fast this machine is."""
        if self.spent <= 0:
            return None
        return max(self.total - self.done, 0.0) * (time.monotonic() - self.began) / self.spent


class Terminal:
    """An observer that writes to standard error and keeps standard output clean."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self.pace = Pace(1.0)
        self._bar: Progress | None = None
        self._task: Any = None
        self._counted: dict[int, float] = {}

    def begin(self, plan: Plan) -> None:
        """Start the bar for a plan."""
        self.pace = Pace.of(plan)
        self._counted = {}
        if not self.quiet and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=self.pace.total, left="")
            self._bar.start()

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """One line for a person."""
        if not self.quiet:
            self.console.print(text)

    def started(self, call: Call, resumed_at: int | None) -> None:
        """A stage begins or goes on."""
        if resumed_at is not None:
            first, _ = call.stage.span
            self._count(call, call.work * (resumed_at - first) / max(call.stage.span[1] - first, 1), made=False)
            self.say(f"  {call.label}: going on from step {resumed_at}, after the checkpoint of step {resumed_at - 1}")
        self._show(call.label)

    def stepped(self, call: Call, step: int) -> None:
        """A step is done."""
        first, last = call.stage.span
        self._count(call, call.work / max(last - first, 1), made=True)
        self._show(f"{call.label}  step {step} of {last}")

    def finished(self, outcome: Outcome) -> None:
        """A stage is there."""
        call = outcome.call
        self._count(call, call.work - self._counted.get(id(call), 0.0), made=not outcome.reused)
        height, width = call.size
        how = "reused" if outcome.reused else f"{outcome.seconds:.1f} s"
        self.say(f"  {call.label:<18} {width}x{height:<6} {outcome.key[:8]}  {how}")
        self._show(call.label)

    def _count(self, call: Call, work: float, made: bool) -> None:
        self._counted[id(call)] = self._counted.get(id(call), 0.0) + work
        self.pace.add(work, made)

    def _show(self, text: str) -> None:
        if self._bar is not None:
            left = self.pace.seconds_left
            self._bar.update(
                self._task,
                completed=self.pace.done,
                description=text,
                left="" if left is None else f"{left:.0f} s left",
            )
