"""Amounts of memory and disk as people write them: `16GiB`, `800MB`, and back."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

SHAPE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]{0,3})", re.IGNORECASE | re.ASCII)
ALLOWED = "is not a number of bytes; write a number with a unit (kB, MB, GB, TB, KiB, MiB, GiB, TiB), for example 16GiB"


def parse_bytes(value: object, least: int = 0) -> int:
    """Return the bytes that a whole number, or a text such as `16GiB`, `800 MB` or `1.5g`, says: `least` or more.

    kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB powers of 1024, with or without the `B`, in upper or
    lower case; a number alone is bytes. Raises `ValueError` with what is allowed for anything else: a sign, another
    unit, no number, a truth value.
    """
    count = -1
    if isinstance(value, str):
        count = _of_text(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value % 1 == 0:
        count = int(value)
    if count < least:
        raise ValueError(ALLOWED)
    return count


def _of_text(text: str) -> int:
    """Return the bytes that a text says, or -1."""
    from dask.utils import parse_bytes  # slow to import, and needed only where an amount is given

    match = SHAPE.fullmatch(text.strip())
    try:
        return -1 if match is None else int(parse_bytes("".join(match.groups())))
    except ValueError:  # a unit that is none
        return -1


def show_bytes(count: float, digits: int = 1) -> str:
    """Return `count` bytes in the largest unit up to GiB: `412 MiB`, `13.4 GiB`. `digits` are those of GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.{digits}f} GiB"


def enough_bytes(count: int) -> str:
    """Return an amount of at least `count` bytes to write on a command line: `13.5GiB`, `412MiB`."""
    if count >= 2**30:
        return f"{math.ceil(count / 2**30 * 10) / 10:.1f}GiB"
    return f"{math.ceil(count / 2**20)}MiB"


_SCHEMA = WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})
Amount = Annotated[int, BeforeValidator(lambda value: parse_bytes(value, least=1)), _SCHEMA]
AmountOrNever = Annotated[
    int,
    BeforeValidator(lambda value: 0 if value == "never" else parse_bytes(value, least=int(isinstance(value, str)))),
    _SCHEMA,
]
