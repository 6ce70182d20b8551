"""Amounts of memory as people write them: `16GiB`, `800MB`, and back."""

from __future__ import annotations

import math
import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """`16GiB`, `800 MB`, `1.5g` -> bytes. Raises `ValueError` for what is none."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE | re.ASCII)
    if match is None or float(match[1]) == 0:
        raise ValueError("not an amount of memory, for example 16GiB")
    return int(float(match[1]) * UNITS[(match[2] or "").lower()])


def show_bytes(count: float, digits: int = 1) -> str:
    """`412 MiB`, `13.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.{digits}f} GiB"


def enough_bytes(count: int) -> str:
    """An amount to write on a command line that is at least `count`: `13.5GiB`, `412MiB`."""
    if count >= 2**30:
        return f"{math.ceil(count / 2**30 * 10) / 10:.1f}GiB"
    return f"{math.ceil(count / 2**20)}MiB"
