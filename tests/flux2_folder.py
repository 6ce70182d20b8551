"""A FLUX.2 klein folder at toy width with random weights, as `Flux2KleinPipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.toys import new_flux2, new_flux2_vae
from tests.zimage_folder import qwen3

if TYPE_CHECKING:
    from pathlib import Path


def klein_folder(folder: Path, *, is_distilled: bool = False) -> Path:
    """Write the folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae = new_flux2(), new_flux2_vae()
        text, tokenizer = qwen3(27, width=8)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": transformer,
        "is_distilled": is_distilled,
    }
    Flux2KleinPipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
