"""What moved between two lists of planned calls, in words that name the call and the field."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Calls = dict[str, dict[str, Any]]  # by label, as `doors.plan_calls` returns them

ADVICE = (
    "Artifacts of every store written before would not be found any more. Give the field its old name back, or write "
    "it under the old name. If the arithmetic changed on purpose, raise the version of the stage or method, say "
    "so in CHANGELOG.md, and follow the docstring of tests/golden/make.py."
)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Fail a test in plain words where the body refuses what was valid before."""
    said = None
    try:
        yield
    except ValueError as error:  # a `SpecError`, or pydantic's own
        said = str(error).partition("\n    For further information")[0]
    if said is not None:
        pytest.fail(f"{what}: {said}\n{ADVICE}", pytrace=False)


def differences(then: Calls, now: Calls) -> list[str]:
    """A line for each call whose key is another, is gone or is new; calls that only follow a parent share one line."""
    lines, followers = list[str](), list[str]()
    for label in [*then, *(label for label in now if label not in then)]:
        if label not in now:
            lines.append(f"{label}: is no longer planned; its key was {then[label]['key'][:8]}")
        elif label not in then:
            lines.append(f"{label}: is new in the plan, with the key {now[label]['key'][:8]}")
        elif then[label]["key"] != now[label]["key"]:
            fields = list(_fields(then[label], now[label]))
            if fields:
                lines += [f"{label}: {field}" for field in fields]
            elif then[label]["parents"] != now[label]["parents"]:
                followers.append(label)
            else:
                lines.append(
                    f"{label}: its key moved, and every field is as before: the model's files, its dtype or the way in "
                    "which keys are computed have changed"
                )
    if followers:
        lines.append(f"moved with the calls they are made from: {', '.join(followers)}")
    return lines


def _fields(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The fields of one call that differ."""
    for name in ("stage", "version"):
        if then[name] != now[name]:
            yield f"{name} was {then[name]!r} and is {now[name]!r}"
    if set(then["parents"]) != set(now["parents"]):
        yield f"is made from {', '.join(sorted(now['parents']))}, and was from {', '.join(sorted(then['parents']))}"
    had, has = dict(_flat(then["params"])), dict(_flat(now["params"]))
    for name in sorted(had.keys() | has.keys()):
        if name not in has:
            yield f"the field {name} is gone; it was {had[name]!r}"
        elif name not in had:
            yield f"the field {name} is new, with the value {has[name]!r}"
        elif had[name] != has[name]:
            yield f"the field {name} was {had[name]!r} and is {has[name]!r}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each field by its dotted name; the spec inside a provenance, which is a line of JSON, too."""
    for name, inner in value.items():
        if name == "provenance" and isinstance(inner, str):
            inner = json.loads(inner)
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
