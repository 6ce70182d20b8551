"""The errors of a render: a spec that cannot be rendered, and a result that cannot be right.

SpecError(ValueError)       the person who wrote the spec can mend it
StageError(RuntimeError)    another try gives the same result
"""

from __future__ import annotations


class SpecError(ValueError):
    """A spec that cannot be rendered. The message is one sentence: the field, its value, what is allowed."""


class StageError(RuntimeError):
    """A stage whose result cannot be right (NaN, a uniform picture). Nothing of it is kept."""
