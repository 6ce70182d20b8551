"""The adapters that a prompt names, `<lora:NAME:0.8>`, beside those of the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.adapters.spec import LoraSpec
from stages.errors import SpecError
from stages.prompts.syntax import split_networks

if TYPE_CHECKING:
    from stages.spec import ModelSpec


def with_prompted(model: ModelSpec, prompt: str, negative_prompt: str | None, syntax: str) -> ModelSpec:
    """Return the model with the adapters that a prompt in this syntax names, after those it has; a plain one has none.

    Raises `SpecError` for a network of another kind, for what is no weight, and for one in the negative prompt.
    """
    _, networks = split_networks(prompt, syntax)
    _, misplaced = split_networks(negative_prompt or "", syntax)
    if misplaced:
        raise SpecError(
            f"negative_prompt: it names the LoRA {misplaced[0].name!r}, which acts on the whole picture; name it in "
            "the prompt, with a weight below 0 to be drawn away from it"
        )
    named = [LoraSpec(file=each.name, weight=each.weight, text_weight=each.text_weight) for each in networks]
    return model.model_copy(update={"loras": (*model.loras, *named)}) if named else model
