"""Wan: rows of UMT5, zeros after the prompt's own, as the stock pipeline makes them of a cleaned prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def wan_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) of a prompt, zeros included: the network reads them."""
    rows, _ = pipeline.encode_prompt(
        prompt,
        device=models.device,
        do_classifier_free_guidance=False,
        max_sequence_length=int(models.info.text_tokens or 0),
    )
    return {"prompt_embeds": rows}
