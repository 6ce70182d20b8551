from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import InvalidNameError, canonical, fingerprint
from storage.fingerprint import checked_key

names = st.text(max_size=6)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
fields = st.dictionaries(names, values, max_size=5)
empty: st.SearchStrategy[Any] = st.sampled_from([None, (), [], {}, {"a": None}, {"a": {"b": []}}])


def test_a_key_is_the_sha256_of_canonical_json() -> None:
    assert canonical({"b": (1, 2.0), "a": "é"}) == '{"a":"\\u00e9","b":[1,2.0]}'
    # sha256 of '["base_denoise",1,{"steps":50}]': if this moves, every stored key is lost
    assert fingerprint("base_denoise", 1, {"steps": 50}) == (
        "0436d4fca6a4589c93d15c83ea824a5c5b419db23a90710f4527ff21456ed988"
    )


@given(fields)
def test_order_of_names_does_not_count(value: dict[str, Any]) -> None:
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)


@given(fields, names, empty)
def test_a_new_empty_field_keeps_the_key(value: dict[str, Any], name: str, nothing: object) -> None:
    value.pop(name, None)
    assert fingerprint({**value, name: nothing}) == fingerprint(value)
    assert fingerprint("stage", {"params": {**value, name: nothing}}) == fingerprint("stage", {"params": value})


@given(fields, names, st.sampled_from([0, False, "", 0.0, [None]]))
def test_a_field_with_a_value_changes_the_key(value: dict[str, Any], name: str, something: object) -> None:
    value.pop(name, None)
    assert fingerprint({**value, name: something}) != fingerprint(value)


@given(values)
def test_canonical_json_reads_back_as_itself(value: object) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(st.integers(-(2**53), 2**53))
def test_integers_and_floats_are_two_values(number: int) -> None:
    assert fingerprint(number) != fingerprint(float(number))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_told_apart_to_the_last_bit(a: float, b: float) -> None:
    assert (canonical(a) == canonical(b)) == (np.float64(a).tobytes() == np.float64(b).tobytes())


@given(st.lists(values, min_size=2, max_size=4, unique_by=canonical))
def test_order_and_number_of_parts_count(parts: list[Any]) -> None:
    assert fingerprint(*parts) != fingerprint(*reversed(parts))
    assert fingerprint(*parts) != fingerprint(*parts[:-1])
    assert fingerprint(*parts, None) != fingerprint(*parts)


def test_lists_and_tuples_are_one() -> None:
    assert fingerprint((1, [2, (3,)])) == fingerprint([1, (2, [3])])
    assert canonical([None, {}, []]) == "[null,{},[]]"
    assert canonical(True) != canonical(1)
    assert canonical(np.float64(0.1)) == "0.1"


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), {"a": [float("-inf")]}),
        *({1: "a"}, {"a": {None: 1}}, b"bytes", {1, 2}, object(), 1j, np.int64(3), np.float32(3)),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"fingerprint|canonical form"):
        fingerprint(value)


@pytest.mark.parametrize("key", ["", "k", "../" + "0" * 61, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", None, 7])
def test_only_fingerprints_are_keys(key: Any) -> None:
    assert checked_key("0" * 64) == "0" * 64
    with pytest.raises(InvalidNameError, match="64 lower-case hex"):
        checked_key(key)
