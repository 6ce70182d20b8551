"""The stages of a causal VAE of videos, whose latent frames but the first are several frames each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.imported import Imported

if TYPE_CHECKING:
    from stages.stage import Stage

CAUSAL: Imported[type[Stage]] = Imported(
    "stages.causal", {"decode 101": "decode.DecodeCausal", "upscale 104": "upscale.UpscaleCausal"}
)
"""By name and version, as `Stage.key_version` has it; imported where a model needs them."""
