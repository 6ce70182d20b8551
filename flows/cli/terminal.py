"""What a person sees while a render runs: one line a stage, a bar with seconds left where there is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn

from flows.cli.console import plain_console
from flows.rendering.progress import RenderProgress

if TYPE_CHECKING:
    from stages.call import Call
    from stages.observer import Outcome
    from stages.plan import Plan


class Terminal:
    """An observer that writes to standard error and keeps standard output clean."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = plain_console(stderr=True)
        self.quiet = quiet
        self.progress = RenderProgress(1.0)
        self._bar: Progress | None = None
        self._task: Any = None

    def begin(self, plan: Plan) -> None:
        """Start the bar for a plan."""
        self.progress = RenderProgress.of(plan)
        if not self.quiet and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=self.progress.total, left="")
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
            self.progress.resumed(call, resumed_at)
            self.say(f"  {call.label}: going on from step {resumed_at}, after the checkpoint of step {resumed_at - 1}")
        self._show(call.label)

    def stepped(self, call: Call, step: int) -> None:
        """A step is done."""
        self.progress.stepped(call)
        self._show(f"{call.label}  step {step} of {call.stage.span[1]}")

    def finished(self, outcome: Outcome) -> None:
        """A stage is there."""
        self.progress.finished(outcome)
        call = outcome.call
        height, width = call.size
        how = "reused" if outcome.reused else f"{outcome.seconds:.1f} s"
        self.say(f"  {call.label:<18} {width}x{height:<6} {outcome.key[:8]}  {how}")
        self._show(call.label)

    def _show(self, text: str) -> None:
        if self._bar is not None:
            left = self.progress.seconds_left
            self._bar.update(
                self._task,
                completed=self.progress.done,
                description=text,
                left="" if left is None else f"{left:.0f} s left",
            )
