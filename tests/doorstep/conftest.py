"""What the tables cost is told at the end of a run: they are to take less than a minute of a core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doorstep.harness import SPENT

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the sum over all command lines."""
    if SPENT:
        terminalreporter.write_line(f"doorstep: {len(SPENT)} command lines took {sum(SPENT):.0f} s of a core")
