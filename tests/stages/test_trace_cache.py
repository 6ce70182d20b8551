"""Results of traces kept in a file: taken from there, never a failure, and never a reason to fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import ship_traces
from stages.planner import networks
from stages.planner import trace_cache as module
from stages.planner.trace_cache import cached_trace, trace_cache

if TYPE_CHECKING:
    from pathlib import Path


def test_a_trace_is_made_once(tmp_path: Path) -> None:
    made = []

    def trace() -> tuple[float, ...]:
        made.append(1)
        return 5, 2.5

    for _ in range(2):
        with trace_cache(tmp_path / "cache" / "traces.json"):
            assert cached_trace(trace, "unet", ["config"], (8, 8)) == (5, 2.5)
    assert len(made) == 1
    with trace_cache(tmp_path / "cache" / "traces.json"):
        cached_trace(trace, "unet", ["config"], (8, 16))
    cached_trace(trace, "unet", ["config"], (8, 8))  # outside of a `with` nothing is kept
    assert len(made) == 3


def test_a_trace_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traces.json"

    def broken() -> tuple[float, ...]:
        raise NotImplementedError("a meta tensor has no numbers")

    with pytest.raises(NotImplementedError), trace_cache(path):
        cached_trace(broken, "unet")
    assert not path.exists()
    with trace_cache(path):
        assert cached_trace(lambda: (1.0,), "unet") == (1.0,)


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", "{not json", '{"a": 3}'])
def test_a_damaged_file_is_made_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    path.write_text(text)
    with trace_cache(path):
        assert cached_trace(lambda: (1.0,), "unet") == (1.0,)
    assert [1.0] in json.loads(path.read_text()).values()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with trace_cache(tmp_path / "cache" / "traces.json"):
        assert cached_trace(lambda: (1.0,), "unet") == (1.0,)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("shapes", 256),
        pytest.param("shapes", 1024, marks=pytest.mark.thorough),
        pytest.param("shapes-motion", 128, marks=pytest.mark.thorough),
    ],
)
def test_what_is_shipped_is_what_a_trace_finds(
    model: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, run `python -m benchmarks.ship_traces`."""
    shipped = json.loads(module.SHIPPED.read_text())
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "none")
    networks._denoise_cost.cache_clear()
    networks._vae_cost.cache_clear()
    with trace_cache(tmp_path / "traces.json"):
        ship_traces.trace_all(ship_traces.planned(model, size, size, tmp_path))
    found = json.loads((tmp_path / "traces.json").read_text())
    assert len(found) > 5
    assert found == {key: shipped.get(key) for key in found}


def test_a_home_takes_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trace_cache(tmp_path / "traces.json"):
        cached_trace(lambda: (2.0,), "unet")
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "traces.json")
    with trace_cache(tmp_path / "other.json"):
        assert cached_trace(lambda: pytest.fail("it was traced"), "unet") == (2.0,)
