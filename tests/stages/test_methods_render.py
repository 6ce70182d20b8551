"""Every method through the runner, on the embedded model: stopped inside its stages and resumed to equal pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F

from flows.home import Home
from flows.rendering.stop import StopEvent
from freescale.methods.freescale import FreeScale
from stages.denoise import DenoiseStage
from stages.models.load import Models, describe
from stages.plan import Plan, make_plan
from stages.runner import Interrupted, Runner
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.homes import copy_before
from tests.toys import ON_UNETS, points

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stages.call import Call
    from stages.observer import Outcome

SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 224, "height": 192, "steps": 4}
"""1.6 and 1.75 times the training size: rounded, 2, so that every method has something to do."""


class Stopper:
    """An observer that asks to stop after each of the given steps of the last level, once."""

    def __init__(self, level: int, steps: set[int]) -> None:
        self.level, self.steps, self.stop = level, steps, StopEvent()
        self.resumed: list[int] = []

    def started(self, call: Call, resumed_at: int | None) -> None:
        self.resumed += [] if resumed_at is None else [resumed_at]

    def stepped(self, call: Call, step: int) -> None:
        if call.level == self.level and step in self.steps:
            self.steps.discard(step)
            self.stop.set()

    def finished(self, outcome: Outcome) -> None:
        """Nothing to do."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    home = tmp_path_factory.mktemp("home")
    return Models(describe(ModelSpec(), home), "float32", torch.device("cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has renders that nothing stopped."""
    return tmp_path_factory.mktemp("unstopped")


EARLY: dict[str, dict[str, Any]] = {  # so that every stage has steps to do
    "freescale": {"restart": 0.3, "dilation": (0.0, 0.7)},
    "scalediff": {"restart": 0.3},
    "swift": {"steps": 4, "start_timestep": 600.0},
    "draft": {"steps": 4},
    "rectifiedhr": {"first": 0.5},
    "pixelrush": {"steps": 4},
    "hiwave": {"skip": 0.9},
    "diffusehigh": {"restart": 0.3, "structure": 0.6},
    "ap_ldm": {"restart": 0.3},
    "mrflow": {"steps": 4},
}
STEPS = {"rectifiedhr": 8, "frecas": 20}  # of which the last level takes four


def plan_of(name: str, models: Models, **changes: Any) -> Plan:
    method = {"name": name, **EARLY.get(name, {})}
    steps = {"steps": STEPS.get(name, SMALL["steps"])}
    return make_plan(make_spec(SMALL | {"method": method} | steps | changes), models.info)


def pixels(home: Path, plan: Plan, models: Models, observer: Stopper) -> tuple[Tensor, int]:
    """The last picture, and how often the render was stopped and started again."""
    stops = 0
    while True:
        observer.stop.clear()
        runner = Runner(Home(home).store, models, RunOptions(), observer, observer.stop)
        try:
            outcomes: dict[str, Outcome] = {}
            return runner.read(plan.exports[-1].parents["image"], outcomes)["image"], stops
        except Interrupted:
            stops += 1


NAMES = points(
    [name for name, method in ON_UNETS.items() if not method.in_pixels],
    kept=lambda name: name == "swift",  # all of them without the runner, too
)


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_the_same_picture(name: str, models: Models, home: Path, tmp_path: Path) -> None:
    plan = plan_of(name, models)
    last = len(plan.sizes) - 1
    whole, none = pixels(home, plan, models, Stopper(last, set()))
    observer = Stopper(last, {2, 3, 4})
    copy_before(home, tmp_path, plan, next(call.label for call in plan.calls if call.level == last))
    broken, stops = pixels(tmp_path, plan, models, observer)
    assert (none, stops) == (0, 3)
    assert observer.resumed == [2, 3, 4]  # also after the last step of a stage, which has nothing left to do
    assert whole.shape == (1, 3, 192, 224)
    assert whole.float().std() > 0.01
    assert torch.equal(broken, whole)


def test_enlarge_has_the_pixels_of_level_zero(models: Models, home: Path) -> None:
    plan = plan_of("enlarge", models)
    assert [call.label for call in plan.calls if call.level] == ["enlarge 1", "export 1"]
    runner = Runner(Home(home).store, models, RunOptions(), Stopper(0, set()))
    outcomes: dict[str, Outcome] = {}
    small, large = (runner.read(export.parents["image"], outcomes)["image"].float() for export in plan.exports)
    wanted = F.interpolate(small, size=(192, 224), mode="bicubic", align_corners=False)
    torch.testing.assert_close(large, wanted, atol=2e-3, rtol=0)  # float16


def test_the_walks_of_the_plan(models: Models) -> None:
    """Level 0 of `swift` is that of every method where it is not left early."""
    calls = {name: plan_of(name, models, steps=10).calls for name in ("swift", "freescale", "rectifiedhr", "frecas")}
    steps = {
        name: {c.level: c.stage.passes for c in of if isinstance(c.stage, DenoiseStage)} for name, of in calls.items()
    }
    assert steps["swift"] == {0: 6, 1: 4}
    assert steps["rectifiedhr"] == {0: 5, 1: 5}
    assert steps["frecas"] == {0: 8, 1: 2}
    (whole,) = (
        c for c in plan_of("swift", models, method={"name": "swift", "leave": 1.0}).calls if c.label == "base_denoise 0"
    )
    params = whole.stage.params()
    assert "walk" not in params
    plain = next(c for c in plan_of("direct", models, width=136, height=120).calls if c.label == "base_denoise 0")
    assert params | {"method": 0, "base_size": 0} == plain.stage.params() | {"method": 0, "base_size": 0}


@pytest.mark.thorough
def test_methods_are_different_pictures(models: Models, home: Path) -> None:
    """From a scale that rounds to 2 on."""
    plans = [plan_of(name, models) for name in ("direct", "freescale", "demofusion", "hidiffusion")]
    made = [pixels(home, plan, models, Stopper(0, set()))[0] for plan in plans]
    for i, one in enumerate(made):
        assert all(not torch.equal(one, other) for other in made[:i])


@pytest.mark.thorough
def test_demofusion_keeps_the_moments_of_level_zero(models: Models, tmp_path: Path) -> None:
    """Phase by phase, through the anchor that the plan hands on."""
    cascade = [[128, 112], [160, 144], [192, 160]]
    plan = plan_of("demofusion", models, width=192, height=160, steps=2, cascade=cascade)
    assert len(plan.sizes) == 3
    runner = Runner(Home(tmp_path).store, models, RunOptions(), Stopper(0, set()))
    outcomes: dict[str, Outcome] = {}
    latents = [runner.read(e.parents["image"].parents["latents"], outcomes)["latents"] for e in plan.exports]
    for later in latents[1:]:
        torch.testing.assert_close(later.mean(), latents[0].mean(), atol=1e-4, rtol=0)
        torch.testing.assert_close(later.std(), latents[0].std(), atol=1e-4, rtol=0)


def test_what_a_model_is_told(models: Models) -> None:
    """DemoFusion tells the final size at every level; an anchor is a parent only where it is asked for."""
    for name, size, roles in (
        ("demofusion", (192, 224), {"text", "latents", "reference", "anchor"}),
        ("freescale", None, {"text", "latents", "reference"}),
    ):
        plan = plan_of(name, models)
        denoising = [call for call in plan.calls if call.stage.name.endswith("denoise")]
        told = {tuple(call.stage.params()["time_ids"]) for call in denoising}
        assert told == {size or plan.sizes[0]}
        assert set(denoising[-1].parents) == roles


def test_a_recorded_spec_says_the_models_own_values_and_is_the_same_render(models: Models) -> None:
    plan = make_plan(make_spec(SMALL), models.info)
    assert plan.info.method_defaults["freescale"]["restart"] != FreeScale().restart  # else this shows nothing
    recorded = json.loads(json.dumps(plan.spec.model_dump(mode="json")))
    assert recorded["method"]["restart"] == plan.info.method_defaults["freescale"]["restart"]
    again = make_plan(make_spec(recorded), models.info)
    assert [call.key for call in again.calls] == [call.key for call in plan.calls]
    assert plan_of("freescale", models).exports[-1].key != plan.exports[-1].key
