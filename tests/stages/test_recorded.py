"""A stage from its manifest, and what stages can do beside running."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from stages.export import Export
from stages.export_video import ExportVideo
from stages.models.load import describe
from stages.plan import make_plan
from stages.planner.recorded import recorded_stage
from stages.spec import ModelSpec, make_spec
from stages.stage import ByFrame, Tiled, WritesFiles
from stages.upscale import Upscale, UpscaleLatents, UpscaleVideo

if TYPE_CHECKING:
    from pathlib import Path

    from stages.plan import Plan

PICTURE: dict[str, Any] = {"prompt": "x", "width": 256, "height": 192, "steps": 6}
VIDEO: dict[str, Any] = {"prompt": "x", "width": 192, "height": 120, "steps": 6, "model": {"name": "shapes-motion"}}


def plan_of(home: Path, values: dict[str, Any]) -> Plan:
    spec = make_spec(values)
    return make_plan(spec, describe(ModelSpec(name=spec.model.name), home))


@pytest.mark.parametrize("values", [PICTURE, VIDEO, VIDEO | {"method": {"name": "freescale", "upsample": "rgb"}}])
def test_every_stage_with_a_network_is_known_from_its_manifest(values: dict[str, Any], tmp_path: Path) -> None:
    calls = [call for call in plan_of(tmp_path, values).calls if call.stage.part]
    assert {call.stage.part for call in calls} == {"text", "unet", "vae"}
    for call in calls:
        params = json.loads(json.dumps({**call.stage.params(), "model": call.model}))
        found = recorded_stage(call.stage.name, call.stage.key_version(), params)
        assert type(found) is type(call.stage)
        assert found is not None
        assert found.params() == call.stage.params()


def test_another_version_or_field_is_not_known(tmp_path: Path) -> None:
    stage = next(c.stage for c in plan_of(tmp_path, PICTURE).calls if c.stage.name == "detail_pass")
    params = stage.params()
    assert recorded_stage(stage.name, stage.key_version() + 1, params) is None
    assert recorded_stage(stage.name, stage.key_version(), params | {"colour": 1}) is None
    assert recorded_stage("export", 1, {"format": "png", "provenance": "{}"}) is None, "no network works in it"


def test_variants_have_the_numbers_that_keys_were_made_with() -> None:
    assert [kind.key_version() for kind in (Upscale, UpscaleLatents, UpscaleVideo)] == [1, 101, 102]
    assert [kind.key_version() for kind in (Export, ExportVideo)] == [1, 101]


def test_what_only_some_stages_can_do(tmp_path: Path) -> None:
    stages = [
        call.stage for call in plan_of(tmp_path, VIDEO | {"method": {"name": "freescale", "upsample": "rgb"}}).calls
    ]
    by_frame = {stage.name for stage in stages if isinstance(stage, ByFrame)}
    tiled = {stage.name for stage in stages if isinstance(stage, Tiled)}
    assert by_frame == tiled == {"decode", "upscale"}
    assert {stage.name for stage in stages if isinstance(stage, WritesFiles)} == {"export"}
