"""DeepCache and ToDo in a render: what is refused, what is in a key, what a plan counts, and resume to the bit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.home import Home
from freescale import SOLVERS, Step
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.plan import make_plan
from stages.planner.accelerations import check_accelerations
from stages.planner.blanks import BlankInfo, BlankModels, blank_parents
from stages.planner.configurations import configurations
from stages.planner.networks import TracedNetworks
from stages.planner.skeleton import skeleton_of
from stages.planner.trace import Trace
from stages.runner import Interrupted, Runner
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.stages.test_methods_render import Stopper

if TYPE_CHECKING:
    from pathlib import Path

    from stages.models.info import ModelInfo

SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 256, "height": 192, "steps": 6}
SMALL["method"] = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return describe(ModelSpec(), tmp_path_factory.mktemp("home"))


def stages_of(info: ModelInfo, **fields: Any) -> list[DenoiseStage]:
    plan = make_plan(make_spec(SMALL | fields), info)
    return [call.stage for call in plan.calls if isinstance(call.stage, DenoiseStage)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"deepcache": 1}, "deepcache"),
    ({"deepcache": True}, "deepcache"),
    ({"deepcache_levels": "all"}, "it is off, so deepcache_branch and deepcache_levels say nothing"),
    ({"deepcache": 2, "deepcache_branch": 9}, "9 is beyond 8, the last one of shapes"),
    ({"deepcache": 2, "method": {"name": "hidiffusion"}}, "level 0 of hidiffusion; direct, freescale"),
    ({"deepcache": 2, "deepcache_levels": "all", "method": {"name": "swift"}}, "swift; direct and freescale can"),
    ({"deepcache": 2, "image": "photo.png"}, "there is no level 0 to sample; deepcache_levels all"),
    ({"todo": 1}, "is not auto or a factor above 1, to 16, such as 2"),
    ({"todo": "twice"}, "is not auto or a factor above 1, to 16, such as 2"),
    ({"todo": True}, "is not auto or a factor above 1, to 16, such as 2"),
    ({"todo": "auto", "method": {"name": "swift"}}, "swift as it is set has attention of its own at 256x192; direct"),
    ({"todo": "auto", "method": {"name": "freescale", "fast": True}}, "freescale as it is set has attention"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED)
def test_what_cannot_be_had_is_refused_in_words(fields: dict[str, Any], says: str, info: ModelInfo) -> None:
    with pytest.raises(SpecError) as error:
        make_plan(make_spec(SMALL | fields), info)
    assert says in str(error.value)


@pytest.mark.parametrize("field", [{"deepcache": 3}, {"todo": 2}])
def test_a_unet_of_another_class_is_refused(field: dict[str, Any], info: ModelInfo) -> None:
    other = dataclasses.replace(info, unet_class="UNetMotionModel")
    with pytest.raises(SpecError, match=f"{next(iter(field))}: .* is for picture models with a UNet2DConditionModel"):
        check_accelerations(make_spec(SMALL | field), other)


def test_an_acceleration_is_a_parameter_of_the_stages_that_it_acts_in(info: ModelInfo) -> None:
    def params(**fields: Any) -> list[tuple[Any, Any]]:
        found = [stage.params() for stage in stages_of(info, **fields)]
        return [(each.get("deepcache"), each.get("thinning")) for each in found]

    assert params() == [(None, None)] * 3
    assert params(deepcache=2) == [([2, 2], None), (None, None), (None, None)]
    assert params(deepcache=3, deepcache_branch=0, deepcache_levels="all") == [([3, 0], None)] * 3
    thinned = [256 / stages_of(info)[0].size[1], 192 / stages_of(info)[0].size[0]]
    assert params(todo="auto") == [(None, None), *[(None, thinned[::-1])] * 2]
    assert params(todo=2) == [(None, [2.0, 2.0])] * 3
    made = stages_of(info, deepcache=2, deepcache_levels="all", todo=1.5)
    again = [type(stage).from_params(stage.params()) for stage in made]
    assert [(each.deepcache, each.thinning) for each in again] == [(each.deepcache, each.thinning) for each in made]
    assert "deepcache" not in make_spec(SMALL).model_dump()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fields",
    [
        {"deepcache": 2, "deepcache_branch": 5, "guidance_interval": [0.34, 1.0]},
        pytest.param({"deepcache": 3}, marks=pytest.mark.thorough),
    ],
)
def test_a_plan_counts_full_steps_and_those_between(fields: dict[str, Any], info: ModelInfo) -> None:
    """Against all steps of level 0 in turn, in the whole network: later steps make no keys and values of the prompt."""
    stage = stages_of(info, **fields)[0]
    planned = TracedNetworks(info, "float32", RunOptions()).denoise(stage, 1)
    unet = skeleton_of(configurations(info, "unet"), "float32", ())
    latents = torch.zeros(1, 4, *(side // 8 for side in stage.size))
    models: Any = BlankModels(unet.module, BlankInfo(4, 8), torch.device("meta"))
    resume = Step(-1, latents, (latents,) * SOLVERS[stage.sampling.solver].remembers)
    with Trace() as trace, torch.no_grad():
        unet.trace = trace
        trace.hold((*unet.module.parameters(), *unet.module.buffers()))
        before = trace.live
        running = iter(stage.run(blank_parents(stage, unet.module.config, latents, 8), models, RunOptions(), resume))
        for _ in range(stage.stop):
            next(running)
    assert planned.flops == pytest.approx(trace.flops, rel=0.02)  # 0.017 are those keys and values
    if "guidance_interval" not in fields:  # with one, keys and values for one side and for both are held together
        assert planned.activations == pytest.approx(trace.peak - before, rel=0.01)
    plain = TracedNetworks(info, "float32", RunOptions()).denoise(dataclasses.replace(stage, deepcache=()), 1)
    assert planned.flops < 0.9 * plain.flops


def test_stopped_between_full_steps_it_goes_on_from_the_last_one(info: ModelInfo, tmp_path: Path) -> None:
    """Of six steps 0, 3 and 4 are full, the last of them as guidance begins there."""
    fields = {"deepcache": 3, "width": 64, "height": 64, "guidance_interval": [0.67, 1.0]}
    spec = make_spec(SMALL | fields)
    models = Models(info, "float32", torch.device("cpu"))
    plan = make_plan(spec, info)

    def latents(home: Path, observer: Stopper) -> torch.Tensor:
        while True:
            observer.stop.clear()
            runner = Runner(Home(home).store, models, RunOptions(), observer, observer.stop)
            call = plan.exports[-1].parents["image"].parents["latents"]
            try:
                return runner.read(call, {})["latents"]
            except Interrupted:
                pass

    whole = latents(tmp_path / "whole", Stopper(0, set()))
    observer = Stopper(0, {1, 2, 3, 5})
    assert torch.equal(latents(tmp_path / "broken", observer), whole)
    assert observer.resumed == [3, 4], "stopped after two steps it begins anew"
