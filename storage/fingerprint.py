"""The identity of a result: sha256 of the canonical JSON of everything that decides its bytes.

Canonical JSON is ASCII with sorted names, no spaces and floats as `repr`, so 1 and 1.0 are two values. Fields
that are None or an empty list or mapping are left out, so that a new optional field keeps every older key; an
empty string, 0 and False are values and stay. Items of a list keep their places, empty or not.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from storage.errors import InvalidNameError

KEY = re.compile(r"[0-9a-f]{64}")


def fingerprint(*parts: object) -> str:
    """Return the key (64 hex digits) of `parts`. Their order counts; the order of names inside them does not.

    Raises `ValueError` as `canonical` does.
    """
    return hashlib.sha256(canonical(parts).encode("ascii")).hexdigest()


def canonical(value: object) -> str:
    """Return `value` as canonical JSON. NaN, infinities and types that JSON does not have raise `ValueError`."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def checked_key(key: str) -> str:
    """Return `key` if it is a fingerprint. Raises `InvalidNameError`: nothing else may become part of a path."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InvalidNameError(f"a key is 64 lower-case hex digits, not {key!r}.")
    return key


def _plain(value: object) -> Any:
    """Return `value` in lists, dicts and scalars only, without its empty fields."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} has no place in a fingerprint; only finite numbers do.")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"field names in a fingerprint are strings, not {odd[0]!r}.")
        fields = {name: _plain(item) for name, item in value.items()}
        return {name: item for name, item in fields.items() if item not in (None, [], {})}
    raise ValueError(f"{type(value).__name__} {value!r} has no canonical form; give its fields instead.")
