"""What a model's card says of methods: keyed by their names, flat as in earlier versions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freescale import METHODS
from stages.errors import SpecError
from stages.models.card import merged, method_values, values_for
from stages.models.folder import EMBEDDED_MODELS, VIDEO
from stages.models.presets import FEW_STEPS

CARD = Path("folder") / "freescale.json"
KEYED = {"freescale": {"restart": 0.9, "upsample": "rgb"}, "*": {"freeu": None}}
FLAT = {"restart": 0.9, "upsample": "rgb", "freeu": None}


def test_the_flat_form_is_what_it_was() -> None:
    """FreeScale's fields are for FreeScale alone, FreeU's factors and the rest for every method that has them."""
    values = method_values(FLAT | {"rad": [0.0, 0.0]}, CARD)
    assert values_for("freescale", values) == FLAT
    assert values_for("demofusion", values) == {"freeu": None}  # which has an `upsample` of its own
    assert values_for("hidiffusion", values) == {"freeu": None, "rad": [0.0, 0.0]}


@pytest.mark.parametrize("method", METHODS)
def test_both_forms_say_the_same(method: str) -> None:
    assert values_for(method, method_values(KEYED, CARD)) == values_for(method, method_values(FLAT, CARD))


def test_a_methods_own_value_comes_before_that_of_every_method() -> None:
    values = method_values({"*": {"freeu": None}, "scalecrafter": {"freeu": [1.1, 1.2, 0.9, 0.2]}}, CARD)
    assert values_for("scalecrafter", values) == {"freeu": [1.1, 1.2, 0.9, 0.2]}
    assert values_for("direct", values) == {"freeu": None}


def test_a_card_comes_before_what_is_usual() -> None:
    values = merged(VIDEO, method_values({"freescale": {"upsample": "rgb"}}, CARD))
    assert values_for("freescale", values) == {"freeu": None, "upsample": "rgb", "interpolation": "bilinear"}
    assert merged(VIDEO, method_values({}, CARD)) == VIDEO


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"freescall": {"restart": 0.9}}, "'freescall'; direct, freescale, .*are known"),
        ({"freescale": {"restart": 0.9}, "freeu": None}, "'freeu'"),
        ({"freescale": {"restart": 0.9}, "direct": None}, "None for the method 'direct'"),
        ({"freescale": {"phases": 3}}, "'phases' for the method 'freescale'; it has .*restart"),
        ({"*": {"restarts": 0.9}}, "'restarts' for the method '\\*'"),
        ([0.9], r"\[0.9\]; an object"),
        (None, "None; an object"),
    ],
    ids=str,
)
def test_what_no_method_has_is_refused_with_the_cards_path(given: Any, says: str) -> None:
    with pytest.raises(SpecError, match=f"^model: {CARD} gives .*{says}"):
        method_values(given, CARD)


@pytest.mark.parametrize(
    "values", [*(EMBEDDED_MODELS[name] / "freescale.json" for name in ("shapes", "shapes-motion")), FEW_STEPS, VIDEO]
)
def test_our_own_values_are_keyed_and_known(values: Any) -> None:
    given = json.loads(values.read_text(encoding="utf-8"))["method"] if isinstance(values, Path) else values
    assert set(given) <= {*METHODS, "*"}
    assert method_values(given, CARD) == given
