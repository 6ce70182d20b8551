"""Latents at the end of dilation -> finished latents of the level: detail, with region-aware control."""

from __future__ import annotations

from dataclasses import dataclass

from stages.denoise import DenoiseStage


@dataclass(frozen=True)
class DetailPass(DenoiseStage):
    """Steps tau … N of a level; parents `latents` (from `highres_denoise`), `reference`, `text` and masks."""

    name = "detail_pass"
