"""What goes wrong in a render that a person can mend, or that no further try can."""

from __future__ import annotations


class SpecError(ValueError):
    """A spec that cannot be rendered. The message is one sentence: field, value, what is allowed."""


class StageError(RuntimeError):
    """A stage whose result cannot be right (NaN, a uniform picture). Nothing of it is kept."""
