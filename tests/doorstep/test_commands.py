"""What people type after `freescale`, and what they read when it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@table(
    Case("size-off-the-grid", "render 'a red disc' --size 1001x512", says=("1001", "1000 and 1008")),
    Case("unknown-method", "render x --method magic", says=("magic", "freescale")),
    Case("method-off-by-a-letter", "render x --method freescal", says=("freescal", "freescale")),
)
def test_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
