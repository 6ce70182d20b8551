"""A Chroma folder at toy width with random weights, as `ChromaPipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from stages.models.folder import EMBEDDED
from tests.flux_folder import T5_TOKENS, WORDS
from tests.toys import new_chroma

if TYPE_CHECKING:
    from pathlib import Path


def chroma_folder(folder: Path) -> Path:
    """Write the folder; the VAE is the embedded model's."""
    from diffusers import AutoencoderKL, ChromaPipeline, FlowMatchEulerDiscreteScheduler
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = new_chroma()
        t5 = T5EncoderModel(
            T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
        )
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.1)
    ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=t5,
        tokenizer=T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS),
        transformer=transformer,
    ).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
