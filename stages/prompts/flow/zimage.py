"""Z-Image: rows of Qwen3's last layer but one, as many as the prompt has tokens, as the stock pipeline makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models


def zimage_rows(pipeline: Any, models: Models, prompt: str) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width), zeros after the prompt's own, and text_mask (1, tokens): which are."""
    most = int(models.info.text_tokens or 0)
    (rows,), _ = pipeline.encode_prompt(
        prompt, device=models.device, do_classifier_free_guidance=False, max_sequence_length=most
    )
    mask = torch.arange(most) < len(rows)
    return {"prompt_embeds": F.pad(rows, (0, 0, 0, most - len(rows)))[None], "text_mask": mask[None]}
