"""Stable Diffusion 3 and 3.5: rows of two CLIPs and of T5, and the CLIPs' pooled rows, as the stock pipeline does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.flow.sd3 import T5_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def sd3_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) and text_embeds (1, width) of a prompt.

    The rows of a T5 that is not there are zeros, whose width the stock pipeline asks the transformer.
    """
    tokens = models.info.text_tokens if "t5" in models.info.configs else T5_TOKENS
    if "t5" not in models.info.configs:
        from stages.models.networks import empty_network  # a class of torch's

        pipeline.transformer = empty_network("SD3Transformer2DModel", models.info.configs["unet"])
    rows, _, pooled, _ = pipeline.encode_prompt(
        prompt=prompt,
        prompt_2=None,
        prompt_3=None,
        device=models.device,
        do_classifier_free_guidance=False,
        max_sequence_length=tokens,
    )
    return {"prompt_embeds": rows, "text_embeds": pooled}
