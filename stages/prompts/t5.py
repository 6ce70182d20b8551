"""Prompts -> rows of T5 and CLIP's pooled row, as the stock pipeline of FLUX makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.gradients import without_gradients
from stages.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


@without_gradients
def encode_with_t5(models: Models, prompt: str, negative_prompt: str | None) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) and text_embeds (1, width), with guidance those of the negative prompt.

    All in float32. Raises `StageError` for rows that are not finite.
    """
    info, pipeline = models.info, models.text_pipeline()
    found: dict[str, Tensor] = {}
    for name, text in (("", prompt), ("negative_", negative_prompt)):
        if text is not None:
            rows, pooled, _ = pipeline.encode_prompt(
                prompt=text, prompt_2=None, device=models.device, max_sequence_length=info.text_tokens
            )
            found |= {f"{name}embeds" if name else "prompt_embeds": rows, f"{name}text_embeds": pooled}
    found = {name: each.float().cpu() for name, each in found.items()}
    if bad := [name for name, each in found.items() if not each.isfinite().all()]:
        raise StageError(f"{bad[0]}: the rows are not finite; float32 text encoders work (--dtype float32)")
    return found
