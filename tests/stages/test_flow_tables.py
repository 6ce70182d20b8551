"""The tables of families, whose values are imported when they are asked for: every place in them is there."""

from __future__ import annotations

from freescale.backbones import BACKBONES
from stages.models.flow import FLOW_FAMILIES
from stages.prompts.flow import ROWS


def test_every_family_has_its_network_and_its_rows() -> None:
    assert list(ROWS) == list(FLOW_FAMILIES)
    for name, family in FLOW_FAMILIES.items():
        assert family.pipeline == name
        assert BACKBONES[family.parts["unet"].name].kind == "flow"
        assert callable(ROWS[name])
    assert {BACKBONES[name].kind for name in BACKBONES} == {"unet", "flow"}
    assert "Missing" not in FLOW_FAMILIES
