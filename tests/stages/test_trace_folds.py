"""A trace that runs one portion of each kind counts what a whole trace counts, in a bounded number of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale.frequency import blur_matrix
from freescale.portions import counted_by, each
from stages.denoise import DenoiseStage
from stages.models.fields import read_json
from stages.models.load import describe
from stages.models.networks import empty_part
from stages.plan import make_plan
from stages.planner.networks import run_step
from stages.planner.skeleton import Skeleton
from stages.planner.trace import Trace
from stages.spec import RunOptions, make_spec
from tests.toys import points

if TYPE_CHECKING:
    from pathlib import Path

META = torch.device("meta")
MANY: dict[str, Any] = {"split_guidance": True, "window_rows": 3, "feed_forward_tokens": 64}
LESS: dict[str, Any] = {"split_guidance": True, "window_rows": 8, "feed_forward_tokens": 16384}


class Counting:
    """A counter that a test reads."""

    flops = peak = 0


def run(portions: str) -> tuple[str, int, int]:
    """The portions that were run, and what was counted: a letter's kind is itself, upper case takes 10, else 1."""
    counter, ran, held = Counting(), "", 0
    with counted_by(counter):
        for portion in each(portions, str):
            size = 10 if portion.isupper() else 1
            counter.peak = max(counter.peak, held + size)
            counter.flops, held, ran = counter.flops + size, size, ran + portion
    return ran, counter.flops, counter.peak


@pytest.mark.parametrize(
    ("portions", "ran", "peak"),
    [
        ("", "", 0),
        ("a", "a", 1),
        ("aaaa", "aa", 2),
        ("aaaaab", "aab", 2),
        ("abab", "aba", 2),
        ("AaAaAa", "AaA", 11),
        ("aabaaAA", "aabaAA", 20),
        ("abaaaB", "abaaB", 11),
        ("aabacbB", "aabacbB", 11),
        ("aAaabbbA", "aAaabbA", 11),
        ("ababbaA", "ababbaA", 11),
    ],
)
def test_one_portion_of_each_kind_after_each_kind_is_run(portions: str, ran: str, peak: int) -> None:
    expected = sum(10 if portion.isupper() else 1 for portion in portions)
    assert run(portions) == (ran, expected, peak)


@pytest.mark.parametrize(("portions", "ran"), [("", ""), ("a", "a"), ("ab", "ab"), ("abcd", "ab")])
def test_two_portions_run_where_all_are_of_one_kind(portions: str, ran: str) -> None:
    counter, run = Counting(), ""
    with counted_by(counter):
        for portion in each(portions):
            run, counter.flops = run + portion, counter.flops + 7
    assert (run, counter.flops) == (ran, 7 * len(portions))


def test_without_a_counter_all_portions_run_in_their_order() -> None:
    assert "".join(each("aaabca", lambda _: None)) == "aaabca"


def step_of(spec: dict[str, Any], home: Path) -> tuple[DenoiseStage, Path]:
    """The first stage of the last level, and the model's folder."""
    made = make_spec(spec)
    plan = make_plan(made, describe(made.model, home))
    stages = [call.stage for call in plan.calls if isinstance(call.stage, DenoiseStage)]
    return next(stage for stage in stages if stage.level == len(plan.sizes) - 1), plan.info.folder


def counted(stage: DenoiseStage, folder: Path, options: RunOptions, folds: bool) -> tuple[int, int]:
    unet = Skeleton(empty_part(read_json(folder / "unet" / "config.json"), torch.float32))
    blur_matrix.cache_clear()  # what an earlier trace made would not be counted
    with Trace(folds=folds) as trace, torch.no_grad():
        unet.trace = trace
        trace.hold(unet.module.parameters())
        before = trace.live
        run_step(stage, unet.module, options, min(stage.start + 1, stage.stop - 1), META)
    return trace.flops, trace.peak - before


WAYS: dict[str, dict[str, Any]] = {
    "freescale": {},
    "sink": {"border": "sink"},
    "mask": {"border": "mask"},
    "fast": {"fast": True},
    "freeu": {"freeu": (1.1, 1.2, 0.6, 0.4)},
    "demofusion": {"name": "demofusion", "phases": "doublings"},
}


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.thorough), MANY], ids=["plain", "portions"])
@pytest.mark.parametrize("way", points(WAYS, kept=lambda way: way == "freescale"))
def test_what_is_folded_is_counted(way: str, options: dict[str, Any], tmp_path: Path) -> None:
    spec = {"prompt": "x", "width": 256, "height": 208, "steps": 6, "method": {"name": "freescale"} | WAYS[way]}
    stage, folder = step_of(spec, tmp_path)
    folded, whole = (counted(stage, folder, RunOptions(**options), folds) for folds in (True, False))
    assert folded == whole


class Dispatched(Trace):
    """A trace that counts the operations it sees."""

    seen = 0

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        """Count, then trace."""
        self.seen += 1
        return super().__torch_dispatch__(*args, **kwargs)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, LESS], ids=["plain", "savings"])
def test_operations_do_not_grow_with_the_picture(options: dict[str, Any], tmp_path: Path) -> None:
    """Four times the picture has four times the windows; one portion more of each layer is run at most."""
    seen = []
    for side in (4096, 8192):
        stage, folder = step_of({"prompt": "x", "width": side, "height": side, "steps": 8}, tmp_path)
        unet = Skeleton(empty_part(read_json(folder / "unet" / "config.json"), torch.float32))
        with Dispatched() as trace, torch.no_grad():
            unet.trace = trace
            run_step(stage, unet.module, RunOptions(**options), stage.stop - 1, META)
        seen.append(trace.seen)
    assert seen[1] < 1.5 * seen[0]
