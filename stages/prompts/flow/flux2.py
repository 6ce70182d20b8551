"""FLUX.2: rows of three layers of Qwen3 or Mistral 3 side by side, as the stock pipelines make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def flux2_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, 3 width) of a prompt, those that fill it up included: the network reads them."""
    rows, _ = pipeline.encode_prompt(prompt, device=models.device, max_sequence_length=models.info.text_tokens)
    return {"prompt_embeds": rows}
