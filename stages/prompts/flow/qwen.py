"""Qwen-Image: rows of Qwen2.5-VL's last layer, without those of the template, as the stock pipeline makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def qwen_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width), zeros after the prompt's own, and text_mask (1, tokens): which are."""
    most = int(models.info.text_tokens or 0)
    rows, mask = pipeline.encode_prompt(prompt, device=models.device, max_sequence_length=most)
    found = rows[0] if mask is None else rows[0][mask[0].bool()]
    kept = torch.arange(most) < len(found)
    return {"prompt_embeds": F.pad(found, (0, 0, 0, most - len(found)))[None], "text_mask": kept[None]}
