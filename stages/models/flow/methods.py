"""Which methods work with which families of transformers, and what has to be said for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale import METHODS
from freescale.backbones import BACKBONES
from freescale.backbones.base import RepeatsText, RotatesAnywhere
from stages.errors import SpecError
from stages.models.card import values_for
from stages.models.flow import FLOW_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freescale import Method
    from stages.models.info import ModelInfo

NEEDS: Mapping[type, str] = {
    RotatesAnywhere: "rotary positions of queries and keys",
    RepeatsText: "text that can be at several places",
}


def check_needs(method: Method, info: ModelInfo) -> None:
    """Raise `SpecError` for a method that needs what a model's network has not, with what works."""
    for need, way in _lacks(method, info.unet_class).items():
        able = ", ".join(name for name in METHODS if condition(name, str(info.pipeline)) == "")
        works = f"{way} works" if way else f"{able} work with it"
        raise SpecError(f"method: {method.name!r} needs {NEEDS[need]}, which {info.name} has not; {works}")


def condition(name: str, pipeline: str) -> str | None:
    """Return the values that a method needs with a family, empty where it needs none; None where it does not work."""
    kind, family = METHODS[name], FLOW_FAMILIES[pipeline]
    if "flow" not in kind.backbones or (family.video is not None and not kind.video):
        return None
    method = kind(**values_for(name, family.methods))
    ways = list(_lacks(method, family.parts["unet"].name).values())
    if not all(ways):
        return None
    if family.rules and getattr(method, "positions", "none") not in family.rules:
        ways.append(f"positions {' or '.join(family.rules)}")
    return ", ".join(ways)


def _lacks(method: Method, network: str) -> Mapping[type, str]:
    """Return what a method needs of a class of networks that its backbone has not, and which value does without it."""
    return {need: way for need, way in method.needs.items() if not issubclass(BACKBONES[network], need)}
