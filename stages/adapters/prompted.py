"""The adapters that a prompt names, `<lora:NAME:0.8>`, beside those of the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.adapters.spec import LoraSpec
from stages.prompts.syntax import split_networks

if TYPE_CHECKING:
    from stages.spec import ModelSpec


def with_prompted(model: ModelSpec, prompt: str, syntax: str) -> ModelSpec:
    """Return the model with the adapters that a prompt in this syntax names, after those it has; a plain one has none.

    Raises `SpecError` for a network of another kind, and for what is no weight.
    """
    _, networks = split_networks(prompt, syntax)
    named = [LoraSpec(file=each.name, weight=each.weight, text_weight=each.text_weight) for each in networks]
    return model.model_copy(update={"loras": (*model.loras, *named)}) if named else model
