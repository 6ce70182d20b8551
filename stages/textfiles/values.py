"""What a short text stands for, and where in a file a value was written.

A text is a number only where it is written as one: `0123`, `12:30:45` and `no` stay text. This is YAML 1.2's rule; with
YAML 1.1 they are 83, 45045 and false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NULL = re.compile(r"~|null|Null|NULL|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]+|0o[0-7]+")
NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Lines:
    """The line that a value is written in, and those of the values inside it, by key or by position in a list."""

    line: int
    inside: Mapping[str | int, Lines] = field(default_factory=dict, repr=False)

    def has(self, part: str | int) -> bool:
        """Whether a value is written there under this key or position."""
        return part in self.inside

    def line_of(self, *path: str | int) -> int:
        """Return the line of the value at `path`, or of the innermost around it that is written there.

        Parts that are not in the file are passed over: an error names `method.freescale.restart`, a file has
        `restart` in `method`.
        """
        found = self
        for part in path:
            found = found.inside.get(int(part) if isinstance(part, str) and part.isdecimal() else part, found)
        return found.line


def scalar(text: str) -> Any:
    """Return the number, truth value or None that a text is written as, and otherwise the text itself."""
    if NULL.fullmatch(text) or text.lower() == "none":
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return text.lower() == "true"
    if WHOLE.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if NUMBER.fullmatch(text) and text.lower()[-3:] not in ("inf", "nan"):
        return float(text)
    return text
