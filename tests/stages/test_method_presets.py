"""Presets of methods: what they decide, for which models, and what goes before what."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.flux_folder import write_flux
from benchmarks.sdxl_folder import UNET, VAE, write_sdxl
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.sampling_advice import sampling_remarks
from freescale import METHODS, make_schedule
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.locate import EMBEDDED
from stages.models.method_presets import FAMILIES, SCALES, TABLE, family_of, says_measured
from stages.models.presets import METHOD_PRESETS
from stages.plan import make_plan
from stages.planner.estimate import call_flops, estimate
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from pathlib import Path

    from stages.plan import Plan

SD = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 768,
    "use_linear_projection": True,
}


def folder(family: str, root: Path) -> ModelSpec:
    """A model of a family without weights, of which plans can be made."""
    if FAMILIES[family].is_flow:
        write_flux(root / "models" / family)
        return ModelSpec(name=family)
    path = write_sdxl(root / "models" / family)
    if not FAMILIES[family].is_xl:
        cells = FAMILIES[family].cells
        (path / "unet" / "config.json").write_text(json.dumps({**SD, "sample_size": cells}))
        (path / "vae" / "config.json").write_text(json.dumps({**VAE, "sample_size": 8 * cells}))
        (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        shutil.rmtree(path / "text_encoder_2")
    return ModelSpec(name=family)


def planned(model: ModelSpec, root: Path, **values: Any) -> Plan:
    model = model.model_copy(update={"dtype": "bfloat16"})
    spec = make_spec({"prompt": "x", "width": 2048, "height": 2048, "model": model, **values})
    return make_plan(spec, describe(spec.model, root, has_weights=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_decides_the_method_and_its_values(family: str, tmp_path: Path) -> None:
    model = folder(family, tmp_path)
    for name, preset in TABLE.items():
        method = planned(model, tmp_path, preset=name).spec.method
        assert method.name == METHOD_PRESETS[name]
        assert {field: getattr(method, field) for field in preset.values[family]} == preset.values[family]


def test_the_values_of_other_families_follow_the_rule() -> None:
    """A training grid of 1/m of SDXL's cells starts at sigma / m; all else is as for SDXL, whose values are these."""
    schedule = make_schedule(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}, 50
    )
    for name in ("swift", "draft"):
        values = TABLE[name].values
        default = METHODS[name]()
        assert values["sdxl"] == {field: getattr(default, field) for field in values["sdxl"]}
        for family, about in FAMILIES.items():
            start = schedule.sigma_at(values["sdxl"]["start_timestep"]) * about.cells / FAMILIES["sdxl"].cells
            own, also = values[family]["start_timestep"], {"patches_only": True} if about.is_flow else {}
            found = own / (1000 - own) if about.is_flow else schedule.sigma_at(own)
            assert found == pytest.approx(start, rel=0.01)
            assert {**values[family], "start_timestep": 0} == {**values["sdxl"], "start_timestep": 0} | also


def share_of_attention(scale: float, fused: bool) -> float:
    """UNet calls of the training size that one at `scale` costs: 11 % of it is self-attention's own products.

    With scale fusion they run over (2 s - 1)^2 windows and over the whole.
    """
    outside, inside = 0.889, 0.111
    return outside * scale**2 + inside * (scale**4 + (2 * scale - 1) ** 2 if fused else scale**2)


def test_the_costs_for_sdxl_are_those_of_arithmetic() -> None:
    """FreeScale takes 35 of 50 steps at every size; swift and draft leave after 40, and jump up to four times."""
    for place, levels in enumerate(((2,), (2, 4), (2, 4, 8))):
        reference = 50 + sum(35 * share_of_attention(scale, fused=True) for scale in levels)
        assert TABLE["reference"].calls["sdxl"][place] == pytest.approx(reference, rel=0.05)
        jumps = [scale for scale in levels if scale in (4, 8) or levels == (2,)]
        for name, steps in (("swift", 8), ("draft", 2 / 2)):  # without guidance a call is half of one
            calls = 40 + sum(steps * share_of_attention(scale, fused=False) for scale in jumps)
            for family in (key for key, about in FAMILIES.items() if not about.is_flow):
                assert TABLE[name].calls[family][place] == pytest.approx(calls, rel=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_the_costs_are_those_of_the_plan(family: str, tmp_path: Path) -> None:
    model, side = folder(family, tmp_path), 8 * FAMILIES[family].cells
    for name, preset in TABLE.items():
        for scale, expected in zip(SCALES, preset.calls[family], strict=True):
            plan = planned(model, tmp_path, width=scale * side, height=scale * side, preset=name, steps=50)
            costs = [(call.stage.part, estimate(call, plan.info, RunOptions())) for call in plan.calls]
            calls = sum(cost.flops for part, cost in costs if part == "unet")
            assert calls / call_flops(plan.calls, plan.info, RunOptions()) == pytest.approx(expected, rel=0.01)
            if family == "sdxl":
                place, memory = SCALES.index(scale), max(cost.memory for part, cost in costs if part == "unet")
                assert sum(cost.flops for _, cost in costs) / 1e12 == pytest.approx(preset.tflop[place], rel=0.01)
                assert memory / 2**30 == pytest.approx(preset.unet_gib[place], rel=0.02)


def test_reference_is_what_no_preset_is(tmp_path: Path) -> None:
    """To the key, also beside a preset for few steps, and whatever names FreeScale."""
    keys = [call.key for call in planned(ModelSpec(), tmp_path).calls]
    assert [call.key for call in planned(ModelSpec(), tmp_path, preset="reference").calls] == keys
    method = {"name": "freescale"}
    assert [call.key for call in planned(ModelSpec(), tmp_path, preset="reference", method=method).calls] == keys
    few = [call.key for call in planned(ModelSpec(), tmp_path, preset="lightning-4").calls]
    assert [call.key for call in planned(ModelSpec(), tmp_path, preset="reference,lightning-4").calls] == few


def test_the_stages_of_a_preset_are_those_of_its_values(tmp_path: Path) -> None:
    """So that a picture made with `method: swift` on SDXL is not made anew; only the file names its preset."""
    model = folder("sdxl", tmp_path)
    by_preset, by_method = (planned(model, tmp_path, **v) for v in ({"preset": "swift"}, {"method": {"name": "swift"}}))
    kept = [(a.key == b.key, a.stage.name) for a, b in zip(by_preset.calls, by_method.calls, strict=True)]
    assert kept == [(name != "export", name) for _, name in kept]
    assert '"preset": "swift"' in by_preset.exports[0].stage.params()["provenance"]


def test_what_goes_before_what(tmp_path: Path) -> None:
    """The spec's own fields, a preset for few steps, the card, the family."""
    home = Home(tmp_path)
    card = json.loads((EMBEDDED / "freescale.json").read_text())["method"]["swift"]

    def method(**values: Any) -> Any:
        return prepare(make_spec({"prompt": "x", "width": 256, "height": 256, **values}), home).spec.method

    assert method(preset="swift") == method(method={"name": "swift"})
    assert method(preset="swift").start_timestep == card["start_timestep"] != TABLE["swift"].values["sd"]
    own = method(preset="swift", method={"leave": 0.3, "steps": 5})
    assert (own.leave, own.steps, own.start_timestep) == (0.3, 5, card["start_timestep"])
    few = method(preset=["swift", "lightning-4"], method={"steps": 5})
    assert (few.leave, few.steps, few.start_timestep) == (1.0, 5, TABLE["swift"].few_steps["start_timestep"])
    assert few.dilated_layers == card["dilated_layers"]


def test_a_model_for_few_steps_has_values_without_being_told(tmp_path: Path) -> None:
    """By its scheduler; its card comes before them."""
    path = write_sdxl(tmp_path / "models" / "turbo")
    scheduler = path / "scheduler" / "scheduler_config.json"
    ancestral = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | ancestral))
    model = ModelSpec(name="turbo")
    method = planned(model, tmp_path, preset="draft").spec.method
    assert {field: getattr(method, field) for field in TABLE["draft"].few_steps} == TABLE["draft"].few_steps
    (path / "freescale.json").write_text('{"method": {"draft": {"start_timestep": 333.0}}}')
    method = planned(model, tmp_path, preset="draft").spec.method
    assert (method.start_timestep, method.leave) == (333.0, 1.0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"preset": "swfit"}, "preset: 'swfit' is not one of .*the nearest is 'swift'"),
        ({"preset": ["lightning-4", "drafft"]}, "'drafft' is not one of .*the nearest is 'draft'"),
        ({"preset": "swift,draft"}, "'swift' and 'draft', which are both methods; .*lightning-4,swift"),
        ({"preset": "swift,swift"}, "'swift' and 'swift', which are both methods"),
        ({"preset": ["turbo", "lcm"]}, "'turbo' and 'lcm', which are both for few steps"),
        ({"preset": ["swift", 3]}, "3 is not one of"),
        ({"preset": {"name": "swift"}}, "is not one of"),
        ({"preset": []}, r"\[\] is not one of"),
        ({"preset": ""}, "'' is not one of"),
        ({"preset": "swift,"}, "'' is not one of"),
        ({"preset": True}, "True is not one of"),
        ({"preset": "swift", "method": {"name": "freescale"}}, "preset: 'swift' is the method 'swift', and method is "),
        ({"preset": "reference", "method": {"name": "draft"}}, "'reference' is the method 'freescale', and method is"),
        ({"preset": "draft", "method": {"name": "freescale/no-lerp"}}, "leave one of them out"),
    ],
    ids=str,
)
def test_a_wrong_preset_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec({"prompt": "x", **values})
    assert re.search(says, str(caught.value)), str(caught.value)


def test_a_record_is_read_as_it_was_written() -> None:
    for preset in ("swift", "lightning-4", ("lightning-4", "swift"), None):
        spec = make_spec({"prompt": "x", "preset": preset})
        assert spec.preset == preset
        assert make_spec(json.loads(spec.model_dump_json())) == spec
    assert make_spec({"prompt": "x", "preset": ["swift", "turbo"]}).preset == ("turbo", "swift")


def test_a_remark_says_where_values_come_from(tmp_path: Path) -> None:
    home = Home(tmp_path)

    def remarks(preset: str) -> list[str]:
        return [text for text in sampling_remarks(job(preset)) if "preset" in text]

    def job(preset: str) -> Any:
        values = {"prompt": "x", "width": 256, "height": 256, "model": {"name": "own"}, "preset": preset}
        return prepare(make_spec(values), home)

    shutil.copytree(EMBEDDED, tmp_path / "models" / "own")
    assert remarks("swift") == []
    (tmp_path / "models" / "own" / "freescale.json").unlink()
    assert "those for SDXL, since there are none for own, and not measured" in remarks("swift")[0]
    assert remarks("reference") == []


def test_what_is_no_family_is_none(tmp_path: Path) -> None:
    assert family_of(describe(ModelSpec(), tmp_path)) is None
    assert family_of(describe(ModelSpec(name="shapes-motion"), tmp_path)) is None
    assert family_of(describe(folder("sd", tmp_path), tmp_path, has_weights=False)) == "sd"


def test_losses_are_told_with_their_number_and_interval() -> None:
    for name in TABLE:
        assert re.search(r"n = \d+, ± one standard error: at 2x \d+ ± \d+ % right", says_measured(name))
        assert says_measured(name).endswith("not measured on SDXL or transformers")
    assert UNET["sample_size"] == FAMILIES["sdxl"].cells


@pytest.mark.thorough
def test_calls_are_counted_in_whole_guided_ones(tmp_path: Path) -> None:
    """Whatever a render does at level 0, and where it has none."""

    def calls(**values: Any) -> float:
        side = values.pop("side", 128)
        plan = planned(ModelSpec(), tmp_path, width=side, height=side, steps=4, **values)
        costs = [estimate(call, plan.info, RunOptions()).flops for call in plan.calls if call.stage.part == "unet"]
        return sum(costs) / call_flops(plan.calls, plan.info, RunOptions()) if costs else 0.0

    assert calls() == pytest.approx(4)
    assert calls(guidance_interval=[0.5, 1.0]) == pytest.approx(3)  # two without guidance are half of one each
    assert calls(guidance_scale=1.0) == pytest.approx(4)
    assert 2 < calls(deepcache=2) < 4
    assert calls(side=256, method={"name": "direct"}) == pytest.approx(16, rel=0.01)  # it has hardly any attention
    assert calls(side=256, method={"name": "enlarge"}) == pytest.approx(4)
