"""Re-noised latents -> latents at the end of dilation: structure, under fusion and restrained dilation."""

from __future__ import annotations

from dataclasses import dataclass

from stages.denoise import DenoiseStage


@dataclass(frozen=True)
class HighresDenoise(DenoiseStage):
    """Steps restart … tau of a level; parents `latents` (from `renoise`), `reference`, `text` and masks."""

    name = "highres_denoise"
