"""Chroma: the rows of T5, as the stock pipeline makes them, of the words and of one padding token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def chroma_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) of a prompt: the tokens that the pipeline's mask keeps."""
    rows, _, mask, *_ = pipeline.encode_prompt(
        prompt=prompt,
        device=models.device,
        do_classifier_free_guidance=False,
        max_sequence_length=models.info.text_tokens,
    )
    return {"prompt_embeds": rows[:, : int(mask.sum())]}
