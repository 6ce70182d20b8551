"""Methods of transformers in a plan: noise levels and guidance of each level, what is refused, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.plan import Plan, make_plan
from stages.planner.estimate import estimate
from stages.planner.level_schedules import schedules
from stages.planner.method_check import check_methods
from stages.settings import resolve
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.flux_folder import flux_folder
from tests.stages.test_methods_render import Stopper, pixels

if TYPE_CHECKING:
    from pathlib import Path

THREE: dict[str, Any] = {"width": 512, "height": 512}  # of 128 x 128: 1, 2 and 4 times


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux_folder(tmp_path_factory.mktemp("flow") / "dev", embedded=True)


def plan_of(folder: Path | None, home: Path, **fields: Any) -> Plan:
    """The plan of a folder of FLUX, or of the embedded UNet."""
    model = ModelSpec() if folder is None else ModelSpec(name=str(folder))
    given = {"prompt": "a red disc", "width": 256, "height": 256, "steps": 6, "model": model.model_dump()}
    return make_plan(make_spec(given | fields), describe(model, home))


def denoising(plan: Plan) -> list[DenoiseStage]:
    return [call.stage for call in plan.calls if isinstance(call.stage, DenoiseStage)]


def levels_of(plan: Plan) -> list[tuple[float, ...]]:
    """The noise levels of a whole schedule at each level."""
    first = denoising(plan)[0]
    found = schedules(plan.info, first.sampling, resolve(plan.spec, plan.info, plan.sizes), first.base_size)
    return [schedule.sigmas for schedule in found]


def test_rules_of_the_noise_levels(flux: Path, tmp_path: Path) -> None:
    def found(**fields: Any) -> list[tuple[float, ...]]:
        return levels_of(plan_of(flux, tmp_path, **THREE, **fields))

    base, second, third = found()
    assert base == second == third, "`cap` is the table of the first size, which is below the scheduler's range here"
    assert found(shift_rule="cap") == [base] * 3
    stock = found(shift_rule="stock")
    assert stock[0] == base
    assert base[-2] < stock[1][-2] < stock[2][-2]
    assert found(shift_rule=[2, "cap", 3.0])[1] == base
    assert (
        found(shift_rule="2, cap, 3")
        == found(shift_rule=[2, "cap", 3.0])
        == [found(shift_rule=2)[0], base, found(shift_rule=3)[0]]
    )
    imax = levels_of(plan_of(flux, tmp_path, method={"name": "imax"}))
    assert imax == [found(shift_rule=3)[0], found(shift_rule=6)[0]]
    (direct,) = levels_of(plan_of(flux, tmp_path, **THREE, method={"name": "direct"}))
    assert direct == levels_of(plan_of(flux, tmp_path, **THREE, method={"name": "direct"}, shift_rule="sqrt"))[0]


def test_a_stage_is_told_the_rule_only_where_a_spec_has_one(flux: Path, tmp_path: Path) -> None:
    plain, asked = (plan_of(flux, tmp_path, **given) for given in ({}, {"shift_rule": [2.0, "sqrt"]}))
    assert not any("shift_rule" in call.stage.params() for call in plain.calls)
    assert [stage.params()["shift_rule"] for stage in denoising(asked)] == [2.0, "sqrt", "sqrt"]
    renoise = next(call.stage for call in asked.calls if call.stage.name == "renoise")
    assert renoise.params()["shift_rule"] == "sqrt"
    assert asked.spec.model_dump()["shift_rule"] == (2.0, "sqrt")
    assert "shift_rule" not in plain.spec.model_dump()


def test_guidance_of_each_level(flux: Path, tmp_path: Path) -> None:
    def scales(**fields: Any) -> list[float]:
        plan = plan_of(flux, tmp_path, **THREE, **fields)
        return [stage.sampling.guidance_scale for stage in denoising(plan)]

    assert scales(method={"name": "hiflow"}) == [3.5, 4.5, 6.0]
    assert scales(method={"name": "hiflow", "guidance": [2.0, 3.0]}) == [2.0, 3.0, 3.0]
    assert scales(method={"name": "hiflow"}, guidance_scale=3.0) == [3.0] * 3
    assert scales(method={"name": "imax"}) == [3.5, 7.0]
    redo = [{"stage": "renoise", "level": 2, "guidance_scale": 9.0}]
    assert scales(method={"name": "hiflow"}, redo=redo) == [3.5, 4.5, 9.0]


@pytest.mark.parametrize(
    ("is_flux", "fields", "message"),
    [
        (
            False,
            {"method": {"name": "hiflow"}},
            "method: 'hiflow' is for .*, and shapes is none; direct, freescale, .*",
        ),
        (False, {"shift_rule": "cap"}, "shift_rule: 'cap' is for flow models, and shapes is none; leave it out"),
        (True, {"shift_rule": [1, 2, 3]}, "shift_rule: 3 values for 2 levels; give one for each, or one for all"),
        (True, {"shift_rule": "root"}, "shift_rule: 'root' is not stock, cap, sqrt or a number above 0"),
        (True, {"shift_rule": -2}, "shift_rule: .* a number above 0"),
        (
            True,
            {"method": {"name": "hiflow"}, "shift_rule": "sqrt"},
            "shift_rule: sqrt at level 0 gives|shift_rule: sqrt at level 1 gives other noise levels than at level 0, "
            "and 'hiflow' follows level 0 step by step; cap works",
        ),
        (True, {"method": {"name": "draft", "dilation": 0.5}}, "method: dilation is 0.5, allowed: 0.0"),
        (True, {"method": {"name": "hiflow", "restart": [0.5, 0.2]}}, "restart is .* allowed: shares below 1"),
        (
            True,
            {
                **THREE,
                "method": {"name": "hiflow"},
                "redo": [{"stage": "upscale", "level": 2, "method": {"restart": [0.1]}}],
            },
            "method: 6 steps follow the 4 of the level below; a later restart works",
        ),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(
    is_flux: bool, fields: dict[str, Any], message: str, flux: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        plan_of(flux if is_flux else None, tmp_path, **fields)


def test_a_picture_has_no_steps_to_follow(flux: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "small.png"
    Image.new("RGB", (128, 128)).save(path)
    for name, is_fine in (("cinescale", True), ("hiflow", False)):
        if is_fine:
            assert len(plan_of(flux, tmp_path, image=str(path), method={"name": name}).calls) > 3
            continue
        with pytest.raises(SpecError, match="image: 'hiflow' follows the steps of level 0, and a picture has none"):
            plan_of(flux, tmp_path, image=str(path), method={"name": name})


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("hiflow", [6, 4]),
        ("imax", [6, 6]),
        pytest.param("cinescale_2026", [6, 4], marks=pytest.mark.thorough),
        pytest.param("cinescale", [6, 5, 5], marks=pytest.mark.thorough),
        pytest.param("swift", [4, 8], marks=pytest.mark.thorough),
    ],
)
def test_the_plan_says_what_a_method_takes(name: str, steps: list[int], flux: Path, tmp_path: Path) -> None:
    """Operations by step and memory above those of the plain cascade, where a method attends to more or keeps more."""
    made = {}
    for method in ({"name": name}, {"name": "freescale", "fusion": False, "restart": 0.0}):
        plan = plan_of(flux, tmp_path, method=method)
        check_methods(plan)
        calls = [call for call in plan.calls if isinstance(call.stage, DenoiseStage)]
        costs = [estimate(call, plan.info, RunOptions(), "cpu") for call in calls]
        made[method["name"]] = [(c.stage.passes, cost) for c, cost in zip(calls, costs, strict=True)]
    assert [passes for passes, _ in made[name]] == steps
    per_step = {key: costs[-1][1].flops / costs[-1][0] for key, costs in made.items()}
    assert per_step[name] > 0.9 * per_step["freescale"]
    if name == "imax":
        assert per_step[name] > 2.0 * per_step["freescale"], (
            "four times the text, which is longer than the picture here"
        )
    if name == "hiflow":
        plain, kept = (made[key][0][1] for key in ("freescale", "hiflow"))
        assert kept.disk > plain.disk + 5 * 16 * 16 * 4 * 4, "an x0 of level 0 for each of its steps"
        assert made["hiflow"][-1][1].disk == made["freescale"][-1][1].disk


@pytest.mark.thorough
def test_hiflow_hands_the_steps_of_a_level_on(flux: Path, tmp_path: Path) -> None:
    """Through the runner, at both ends: level 0 keeps every x0, the last level none."""
    from flows.home import Home
    from flows.rendering.job import prepare
    from tests.homes import session_in

    home = Home(tmp_path / "home")
    given = {"prompt": "a red disc", "width": 256, "height": 256, "steps": 3, "model": {"name": str(flux)}}
    job = prepare(make_spec(given | {"method": {"name": "hiflow"}}), home)
    session_in(home.root).render(job)
    base, above = (home.store.read(call.key) for call in job.plan.calls if isinstance(call.stage, DenoiseStage))
    assert base["trajectory"].shape == (1, 3, 4, 16, 16)
    torch.testing.assert_close(base["trajectory"][:, -1], base["latents"])
    assert "trajectory" not in above


def test_a_finished_stage_that_is_entered_again_hands_on_all_steps(flux: Path, tmp_path: Path) -> None:
    plan = plan_of(flux, tmp_path, method={"name": "hiflow"}, steps=3)
    (stage,) = (s for s in denoising(plan) if s.level == 0)
    models = Models(plan.info, "float32", torch.device("cpu"))
    text = {"prompt_embeds": torch.zeros(1, 12, 24), "text_embeds": torch.zeros(1, 48)}
    steps, made = run_out(stage.run({"text": text}, models, RunOptions()))
    for step in (steps[0], steps[-1]):
        _, again = run_out(stage.run({"text": text}, models, RunOptions(), step))
        assert again.keys() == made.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in made.items())


def run_out(running: Any) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The steps of a stage, and what it returns."""
    steps = list[Any]()
    while True:
        try:
            steps.append(next(running))
        except StopIteration as end:
            return steps, end.value


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["hiflow", "imax", "cinescale_2026"])
def test_a_render_that_was_stopped_at_any_level_ends_with_the_same_pixels(
    name: str, flux: Path, tmp_path: Path
) -> None:
    plan = plan_of(flux, tmp_path, method={"name": name}, steps=4)
    models = Models(plan.info, "float32", torch.device("cpu"))
    whole, none = pixels(tmp_path / "whole", plan, models, Stopper(0, set()))
    assert none == 0
    for level, steps in ((0, {1, 3}), (1, {2, 3})):
        broken, stops = pixels(tmp_path / f"broken-{level}", plan, models, Stopper(level, set(steps)))
        assert stops == len(steps)
        assert torch.equal(broken, whole), level
