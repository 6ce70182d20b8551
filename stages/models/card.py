"""What a model's card says of methods: values of their fields that go with the model, where a spec gives none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from freescale import METHODS
from stages.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

EVERY = "*"  # in place of a method's name: every method that has the field
FIELDS = {name: frozenset(field.name for field in dataclasses.fields(method)) for name, method in METHODS.items()}

MethodValues = Mapping[str, Mapping[str, Any]]
"""Values of fields by the name of their method, or by `EVERY`."""


def method_values(given: Any, card: Path) -> MethodValues:
    """Return what `method` of the card at `card` says, by the name of the method that it is for.

    A card keys values by the method's name, so that what suits one method changes no other; under `*` stand values for
    every method that has the field, such as FreeU's factors, which go with the channels of the model's UNet:

        "method": {"freescale": {"restart": 0.9, "dilation": [0, 0.97]}, "*": {"freeu": null}}

    Cards of earlier versions give the fields themselves, `"method": {"restart": 0.9, "freeu": null}`. Of these, a field
    of FreeScale's is for FreeScale alone, except FreeU's factors; those and all others are for every method that has
    the field.

    Raises `SpecError` that names the card for an unknown method, for a field that its method does not have, and for
    anything that is no JSON object.
    """
    if not isinstance(given, dict):
        raise SpecError(f"model: {card} gives the method {given!r}; an object of values by the name of a method works")
    if not any(isinstance(values, dict) for values in given.values()):
        own = FIELDS["freescale"] - {"freeu"}
        return {
            "freescale": {name: value for name, value in given.items() if name in own},
            EVERY: {name: value for name, value in given.items() if name not in own},
        }
    for name, values in given.items():
        _check(name, values, card)
    return given


def values_for(method: str, values: MethodValues) -> dict[str, Any]:
    """Return the values for the fields of one method, by field; its own come before those of every method."""
    found = {**values.get(EVERY, {}), **values.get(method, {})}
    return {name: value for name, value in found.items() if name in FIELDS[method]}


def merged(first: MethodValues, second: MethodValues) -> MethodValues:
    """Return the values of both; where both give a field for the same method, those of `second`."""
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in {**first, **second}}


def _check(name: str, values: Any, card: Path) -> None:
    known = frozenset[str]().union(*FIELDS.values()) if name == EVERY else FIELDS.get(name)
    if known is None:
        raise SpecError(f"model: {card} gives values for the method {name!r}; {', '.join((*FIELDS, EVERY))} are known")
    if not isinstance(values, dict):
        raise SpecError(f"model: {card} gives {values!r} for the method {name!r}; an object of fields works")
    if unknown := sorted(set(values) - known):
        raise SpecError(
            f"model: {card} gives {unknown[0]!r} for the method {name!r}; it has {', '.join(sorted(known))}"
        )
