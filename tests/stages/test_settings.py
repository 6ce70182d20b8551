"""Every `redo` resolved: what holds at each stage of each level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stages.errors import SpecError
from stages.models.load import describe
from stages.plan import make_plan
from stages.settings import STAGES, LevelSettings, resolve
from stages.spec import ModelSpec, make_spec

if TYPE_CHECKING:
    from pathlib import Path

SIZES = ((128, 128), (256, 256), (512, 512))


def resolved(home: Path, *redo: dict[str, object]) -> tuple[LevelSettings, ...]:
    spec = make_spec({"prompt": "x", "seed": 3, "guidance_scale": 5, "width": 512, "height": 512, "redo": redo})
    return resolve(spec, describe(ModelSpec(), home), SIZES)


def test_a_change_holds_from_its_stage_on(tmp_path: Path) -> None:
    first, second, third = resolved(tmp_path, {"stage": "renoise", "level": 1, "seed": 9})
    assert {getattr(first, stage).seed for stage in STAGES} == {3}
    assert [getattr(second, stage).seed for stage in STAGES] == [3, 3, 9, 9, 9]
    assert {getattr(third, stage).seed for stage in STAGES} == {9}
    assert [level.size for level in (first, second, third)] == list(SIZES)


def test_later_changes_are_made_to_earlier_ones(tmp_path: Path) -> None:
    early = {"stage": "highres_denoise", "level": 1, "method": {"detail_scale": 1.5}, "guidance_scale": 2}
    late = {"stage": "detail_pass", "level": 1, "method": {"fusion": False}}
    level = resolved(tmp_path, early, late)[1]
    assert (level.renoise.guidance_scale, level.highres_denoise.guidance_scale, level.detail_pass.guidance_scale) == (
        5,
        2,
        2,
    )
    structure, detail = level.highres_denoise.method, level.detail_pass.method
    assert (structure.detail_scale, structure.fusion) == (1.5, True)  # type: ignore[attr-defined]
    assert (detail.detail_scale, detail.fusion) == (1.5, False)  # type: ignore[attr-defined]


def test_a_change_beyond_the_last_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"redo.level: 3 is beyond the last level, 2"):
        resolved(tmp_path, {"stage": "upscale", "level": 3, "seed": 1})


def test_a_change_above_a_level_keeps_its_keys(tmp_path: Path) -> None:
    values = {"prompt": "x", "width": 256, "height": 256}
    info = describe(ModelSpec(), tmp_path)
    plain = make_plan(make_spec(values), info)
    changed = make_plan(make_spec(values | {"redo": [{"stage": "upscale", "level": 1, "seed": 4}]}), info)
    assert [call.key for call in plain.calls if call.level == 0] == [
        call.key for call in changed.calls if not call.level
    ]
    assert not {call.key for call in plain.calls if call.level} & {call.key for call in changed.calls if call.level}
