"""Frames of a clip -> the clean reference of the next level, through RGB: the ablation of the paper's video table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from stages.denoise import LATENT_AXES
from stages.stage import Parents, Stage, Tensors, clip_of
from stages.upscale import encode

if TYPE_CHECKING:
    from freescale import Step
    from stages.models import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class UpscaleClip(Stage):
    """{"latents": (1, C, F, h, w)}: every frame enlarged by bicubic interpolation in RGB and encoded again."""

    name = "upscale"
    version = 102  # another arithmetic under the same name
    part = "vae"
    axes = LATENT_AXES
    streamed = frozenset({"image"})

    seed: int
    level: int
    size: tuple[int, int]
    posterior: str

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """One frame in memory at output size; the posterior's noise is keyed by level and frame."""
        rows = []
        for index, frame in enumerate(clip_of(parents, "image")):
            image = frame.to(models.device, torch.float32)
            larger = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False)
            rows.append(encode(models, options, larger, self.posterior, self.seed, self.level, index))
        return {"latents": torch.stack(rows, dim=2)}
