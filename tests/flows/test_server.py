"""The Prefect flows against a temporary server: the results of the command line, each picture or job a task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from stages.grid import make_grid
from stages.measures.spec import make_evaluation
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS = RunOptions(threads=1)

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("default")]  # Prefect's own warnings are not ours


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path))
    return tmp_path


def task_runs() -> dict[str, str]:
    """Name and state of every task run, from the server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {run.name: run.state_name or "" for run in client.read_task_runs(limit=200)}


def test_evaluate_measures_and_goes_on(home: Path) -> None:
    from flows.evaluate import evaluate

    values: dict[str, Any] = {"methods": ["direct"], "sizes": ["64x64"], "count": 2, "steps": 3, "metrics": ["kid"]}
    spec = make_evaluation(values)
    first = evaluate(spec, OPTIONS)
    before = sorted((home / "store" / "manifests").glob("*/*.json"))
    again = evaluate(spec, OPTIONS)
    assert [row["metric"] for row in first["rows"]] == ["kid"]
    assert again["rows"] == first["rows"]
    assert sorted((home / "store" / "manifests").glob("*/*.json")) == before
    assert all((home / "evaluations" / first["evaluation"] / path.split("/")[-1]).is_file() for path in first["files"])


def test_render_is_the_command_lines_and_its_stages_are_tasks(home: Path) -> None:
    from flows.progress import Terminal
    from flows.render import render
    from flows.session import Home, Session, prepare

    spec = make_spec({"prompt": "a red disc on sand", "width": 192, "height": 128, "steps": 3})
    made = render(spec, OPTIONS)
    elsewhere = Home(home / "elsewhere")
    plain = Session(elsewhere, OPTIONS, Terminal(quiet=True)).render(prepare(spec, elsewhere))
    assert made["pixels_sha256"] == plain.pixels_sha256
    states = task_runs()
    assert {states[name] for name in states if name.startswith("detail_pass 1")} == {"Completed"}


def test_compare_shows_its_pictures_and_the_server_their_states(home: Path) -> None:
    from flows.compare import compare

    spec = make_grid(
        {"methods": ["direct", "hidiffusion"], "sizes": ["64x64"], "prompts": ["a red disc {x}"], "steps": 2}
    )
    made = compare(spec, OPTIONS)
    assert made["tally"] == {"done": 2}
    record = json.loads((home / "comparisons" / made["comparison"] / "comparison.json").read_text())
    for cell in record["rows"][0]["cells"]:
        assert task_runs()[f"{cell['method']}: {cell['run']}"] == "Completed"
