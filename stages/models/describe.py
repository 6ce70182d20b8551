"""All that a spec decides of its model: what its files say, and what the spec and the home add to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.folder import describe as describe_base
from stages.prompts.inversions import known

if TYPE_CHECKING:
    from pathlib import Path

    from stages.models.folder import ModelInfo
    from stages.spec import ModelSpec


def describe(spec: ModelSpec, home: Path, *, has_weights: bool = True) -> ModelInfo:
    """Return what is known of a model before anything is loaded, after every check that needs no tensor.

    Without `has_weights` a folder of configurations alone will do. Raises `SpecError` for a model that cannot serve.
    """
    return known(describe_base(spec, home, has_weights=has_weights), spec, home)
