"""CLIP score (arXiv 2104.08718, section 3, with the weight 100 in common use): max(100 cos(image, text), 0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from stages.metrics.statistics import checked_rows

if TYPE_CHECKING:
    from torch import Tensor


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """Return (n) scores of image embeddings (n, d) and the text embeddings (n, d) of their own prompts."""
    images = checked_rows(images)
    texts = checked_rows(texts, images.shape[1])
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} pictures and {len(texts)} prompts cannot be paired")
    return (100 * F.cosine_similarity(images, texts, dim=1)).clamp(min=0)
