"""What each metric was shown to tell apart: true scenes of `shapes` from the same scenes made worse.

`validated.json` is written by `python -m benchmarks.metrics_validation` and read by the tables of an evaluation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("validated.json")
Verdict = Literal["worse", "better", "no difference"]
MARKS = {"shown": "✓", "mixed": "±", "not shown": "✗"}  # mixed: some faults pass for better than the truth


@dataclass(frozen=True)
class Shown:
    """Faults that a metric rates worse than the truth at every size tested, and those it rates better at some size."""

    worse: tuple[str, ...]
    better: tuple[str, ...]

    @property
    def word(self) -> str:
        """One of the words of `MARKS`: whether the metric was shown to tell good from bad."""
        return "not shown" if not self.worse else "mixed" if self.better else "shown"

    @property
    def mark(self) -> str:
        """The word as a sign."""
        return MARKS[self.word]


@cache
def validation() -> dict[str, Any]:
    """The file: sizes, number of scenes, faults in words, and the separations by metric, size and fault."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def shown(metric: str) -> Shown | None:
    """Return what a metric was shown to tell; None where it was not tested."""
    by_size = validation()["metrics"].get(metric)
    if by_size is None:
        return None
    faults = validation()["faults"]
    verdicts = {fault: [found[fault]["verdict"] for found in by_size.values()] for fault in faults}
    worse = tuple(fault for fault in faults if set(verdicts[fault]) == {"worse"})
    return Shown(worse, tuple(fault for fault in faults if "better" in verdicts[fault]))
