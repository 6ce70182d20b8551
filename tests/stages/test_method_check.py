"""A method that cannot work in a model's UNet is refused before any work, and nothing of a refusal is remembered."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from freescale import METHODS
from stages.errors import SpecError
from stages.models.folder import EMBEDDED, describe
from stages.plan import make_plan
from stages.planner import method_check
from stages.planner.method_check import check_methods
from stages.planner.trace_cache import trace_cache
from stages.spec import ModelSpec, make_spec
from tests.toys import ON_UNETS

if TYPE_CHECKING:
    from pathlib import Path

    from stages.plan import Plan

DOWN, UP = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}, {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}


def unet(*attends: bool, **others: Any) -> dict[str, Any]:
    """The fields of a UNet with attention at these levels, from the largest grid on."""
    return {
        "block_out_channels": [32, 48, 64, 64, 64][: len(attends)],
        "attention_head_dim": 2,
        "down_block_types": [DOWN[each] for each in attends],
        "up_block_types": [UP[each] for each in reversed(attends)],
        **others,
    }


def planned(folder: Path, size: int = 512, method: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """The plan of a picture with the embedded model whose UNet has these fields."""
    if not folder.exists():
        shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    spec = make_spec({"prompt": "x", "width": size, "height": size, "steps": 4, "method": method or {}})
    spec = spec.model_copy(update={"model": ModelSpec(name=str(folder))})
    return make_plan(spec, describe(spec.model, folder.parent / "home", has_weights=False))


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("scalecrafter", unet(False, True), ("the UNet has 2 levels, allowed: 3 (SDXL) or 4", "freescale", "can")),
        ("scalecrafter", unet(True, True, True, True, False), ("the UNet has 5 levels",)),
        ("scalecrafter", unet(False, True, True, mid_block_type=None), ("'mid_block' is unknown",)),
        ("fouriscale", unet(True), ("the UNet has 1 levels, allowed: 3 (SDXL) or 4",)),
        ("fouriscale", unet(True, True, True, True, True), ("the UNet has 5 levels",)),
        ("fouriscale", unet(False, True, True, mid_block_type=None), ("'mid_block' is unknown",)),
        ("hidiffusion", unet(True), ("the UNet has 1 levels, allowed: one or more below",)),
        ("hidiffusion", unet(False, True), ("the UNet has 2 levels, allowed: one or more below",)),
        ("hidiffusion", unet(False, False, True), ("down_blocks.1 of the UNet has 0 attentions",)),
        ("hidiffusion", unet(True, False, False), ("down_blocks.1 of the UNet has 0 attentions",)),
    ],
)
def test_a_unet_that_a_method_cannot_work_in(
    method: str, fields: dict[str, Any], says: tuple[str, ...], tmp_path: Path
) -> None:
    plan = planned(tmp_path / "m", method={"name": method}, **fields)
    for _ in range(2):  # a refusal is not remembered as an answer
        with trace_cache(tmp_path / "traces.json"), pytest.raises(SpecError) as refused:
            check_methods(plan)
        told = str(refused.value)
        assert told.startswith(f"method: {method!r} with "), told
        assert all(text in told for text in says), told
    assert not (tmp_path / "traces.json").exists()


@pytest.mark.parametrize("fields", [unet(True), unet(False, True), unet(False, False, True), unet(True, True, True)])
@pytest.mark.parametrize("method", [name for name, kind in ON_UNETS.items() if kind.any_unet])
def test_a_method_for_every_unet(method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """`any_unet` is what the method says of itself: its changes are made to UNets of all kinds."""
    plan = planned(tmp_path / "m", method={"name": method}, **fields)
    for call in plan.calls:
        if call.stage.part == "unet":
            method_check._ask(call.stage, METHODS[method](), plan.info)  # type: ignore[arg-type]
    check_methods(plan)


@pytest.mark.parametrize("fields", [unet(False, True, True), unet(True, True, True, False)])
@pytest.mark.parametrize("method", [name for name, kind in ON_UNETS.items() if not kind.any_unet])
def test_a_method_in_its_own_unets(method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    check_methods(planned(tmp_path / "m", method={"name": method}, **fields))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "scalecrafter", "layers": [["mid_blok", 2]]}, ("'mid_blok'", "the nearest is 'mid_block'")),
        ({"name": "scalecrafter", "layers": [["mid_block", 2], ["down_blocks.9", 2]]}, ("'down_blocks.9'",)),
        ({"name": "scalecrafter", "ndcfg_layers": [["up_block.0", 2]], "ndcfg_stop": 0}, ("the nearest is 'up_b",)),
        ({"name": "scalecrafter", "disperse_layers": ["mid_block.attentions"]}, ("'mid_block.attentions'",)),
        ({"name": "fouriscale", "layers": ["mid_block", "upblocks.0"]}, ("'upblocks.0'", "'up_blocks.0'")),
        ({"name": "fouriscale", "layers": ["conv_in"], "dilate_stop": 0}, ("'conv_in' is unknown",)),
    ],
)
def test_a_layer_that_the_unet_lacks(method: dict[str, Any], says: tuple[str, ...], tmp_path: Path) -> None:
    """Also one that no step would use."""
    with pytest.raises(SpecError) as refused:
        check_methods(planned(tmp_path / "m", method=method))
    assert all(text in str(refused.value) for text in says), str(refused.value)
    assert "can" not in str(refused.value).split()


def test_an_answer_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "m", method={"name": "hidiffusion"})
    with trace_cache(tmp_path / "traces.json"):
        check_methods(plan)
    monkeypatch.setattr(method_check, "_ask", lambda *of: pytest.fail("it was asked again"))
    with trace_cache(tmp_path / "traces.json"):
        check_methods(plan)


def test_another_unet_is_asked_anew(tmp_path: Path) -> None:
    """The answer for one model says nothing of another under its name."""
    with trace_cache(tmp_path / "traces.json"):
        check_methods(planned(tmp_path / "m", method={"name": "scalecrafter"}))
    shutil.rmtree(tmp_path / "m")
    with trace_cache(tmp_path / "traces.json"), pytest.raises(SpecError, match="2 levels"):
        check_methods(planned(tmp_path / "m", method={"name": "scalecrafter"}, **unet(False, True)))
