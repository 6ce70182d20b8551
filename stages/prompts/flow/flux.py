"""FLUX.1: rows of T5 and CLIP's pooled row, as the stock pipeline makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def flux_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) and text_embeds (1, width) of a prompt."""
    rows, pooled, _ = pipeline.encode_prompt(
        prompt=prompt, prompt_2=None, device=models.device, max_sequence_length=models.info.text_tokens
    )
    return {"prompt_embeds": rows, "text_embeds": pooled}
