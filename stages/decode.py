"""Latents -> picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from stages.stage import Parents, Stage, StageError, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freescale import Step
    from stages.models import Models
    from stages.spec import RunOptions

UNIFORM = 2 / 255  # a picture whose deviation is under half a grey level of 255 shows nothing


@dataclass(frozen=True)
class Decode(Stage):
    """{"image": (1, 3, H, W)} about [-1, 1], not clamped, kept in float16 (an eighth of an 8-bit level)."""

    name = "decode"
    part = "vae"
    axes: ClassVar[Mapping[str, str]] = {"image": "BCHW"}

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Decode the clean latents of a level. Raises `StageError` for a picture that shows nothing."""
        latents = parents["latents"]["latents"].to(models.device, torch.float32)
        image = models.vae.decode(latents / models.vae.config.scaling_factor).sample
        if not torch.isfinite(image).all():
            raise StageError("decode: the picture holds NaN or Inf")
        if image.std() < UNIFORM / 2:
            raise StageError(f"decode: the picture is uniform (deviation {image.std().item():.1e})")
        return {"image": image.to(torch.float16).cpu()}
