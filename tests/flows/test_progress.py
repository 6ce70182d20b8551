"""The progress of a render: found work costs no time, steps add up to their stage, and the end is at 100 %."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.progress import RenderProgress
from stages.observer import Outcome
from stages.spec import make_spec

if TYPE_CHECKING:
    from pathlib import Path

    from stages.plan import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    spec = make_spec({"prompt": "a red disc", "width": 192, "height": 128, "steps": 4})
    return prepare(spec, Home(tmp_path)).plan


def test_no_seconds_are_known_before_something_was_made(plan: Plan) -> None:
    progress = RenderProgress.of(plan)
    assert (progress.percent, progress.seconds_left) == (0.0, None)
    progress.finished(Outcome(plan.calls[0], "", reused=True))
    assert progress.percent > 0.0
    assert progress.seconds_left is None
    progress.finished(Outcome(plan.calls[1], "", reused=False))
    assert progress.seconds_left is not None


def test_steps_resumed_and_made_add_up_to_their_stage(plan: Plan) -> None:
    progress = RenderProgress.of(plan)
    call = next(call for call in plan.calls if call.stage.name == "base_denoise")
    first, last = call.stage.span
    progress.resumed(call, first + 1)
    assert progress.made == 0.0
    for _ in range(first + 1, last):
        progress.stepped(call)
    assert progress.done == pytest.approx(call.work)
    assert progress.made == pytest.approx(call.work * (last - first - 1) / (last - first))
    before = progress.done
    progress.finished(Outcome(call, "", reused=False))
    assert progress.done == pytest.approx(before)


def test_a_render_ends_at_a_hundred_percent(plan: Plan) -> None:
    progress = RenderProgress.of(plan)
    for call in plan.calls:
        progress.finished(Outcome(call, "", reused=False))
    assert progress.percent == pytest.approx(100.0)
    assert progress.seconds_left == pytest.approx(0.0, abs=1e-3)
