"""The Prefect flow `evaluate` against a temporary server: the numbers of the command line, a task a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stages.measures.spec import make_evaluation
from stages.spec import RunOptions

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"methods": ["direct"], "sizes": ["64x64"], "count": 2, "steps": 3, "metrics": ["kid"]}

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("default")]  # Prefect's own warnings are not ours


def test_the_flow_measures_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.evaluate import evaluate

    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path))
    with prefect_test_harness(server_startup_timeout=180):
        spec = make_evaluation(SMALL)
        first = evaluate(spec, RunOptions(threads=1))
        before = sorted((tmp_path / "store" / "manifests").glob("*/*.json"))
        again = evaluate(spec, RunOptions(threads=1))
    assert [row["metric"] for row in first["rows"]] == ["kid"]
    assert again["rows"] == first["rows"]
    assert sorted((tmp_path / "store" / "manifests").glob("*/*.json")) == before
    assert all(
        (tmp_path / "evaluations" / first["evaluation"] / path.split("/")[-1]).is_file() for path in first["files"]
    )
