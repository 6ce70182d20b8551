"""The errors of a render, and the words in which they are told.

SpecError(ValueError)       the person who wrote the spec can mend it
StageError(RuntimeError)    another try gives the same result
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LISTED = 12  # names that one error lists; of more it gives the nearest and what lists them all
LIKENESS = 0.6  # of two names, by difflib's ratio, from which one is a typo of the other


class SpecError(ValueError):
    """A spec that cannot be rendered. The message is one sentence: the field, its value, what is allowed."""


class StageError(RuntimeError):
    """A stage whose result cannot be right (NaN, a uniform picture). Nothing of it is kept."""


def nearest(given: object, allowed: Iterable[str], also: Mapping[str, str] | None = None) -> str | None:
    """Return the allowed name that is most like what was given, or None where none is like it.

    Case, blanks and punctuation do not count. `also` has further words that people use for an allowed name.
    """
    names = {_letters(word): name for word, name in (also or {}).items()} | {_letters(name): name for name in allowed}
    wanted = _letters(str(given))
    found = difflib.get_close_matches(wanted, names, 1, LIKENESS)
    if not found and len(wanted) > 2:
        found = [name for name in names if name.startswith(wanted)]
    return names[found[0]] if found else None


def not_one_of(
    given: object, allowed: Iterable[str], also: Mapping[str, str] | None = None, listed_by: str | None = None
) -> str:
    """Return what is wrong with a name: `'webm' is not one of png, webp; the nearest is 'webp'`.

    Of many names only the nearest is given, and `listed_by`, the command that lists all. `also` as for `nearest`.
    """
    names = list(allowed)
    if len(names) <= LISTED or listed_by is None:
        said = f"{given!r} is not one of {', '.join(names)}" if names else f"{given!r} does not exist"
    else:
        said = f"{given!r} is not one of the {len(names)} that `{listed_by}` lists"
    found = nearest(given, names, also)
    return said if found is None else f"{said}; the nearest is {found!r}"


def _letters(name: str) -> str:
    """Return the letters and digits of a name in lower case; `+` is written p, as in dpmpp for DPM++."""
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())
