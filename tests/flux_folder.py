"""A FLUX folder at toy width with random weights, as `FluxPipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from stages.models.folder import EMBEDDED
from tests.toys import new_flux

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("a", "disc", "red", "on", "blue", "green", "box", "of", "clay")
T5_TOKENS = 12


def flux_folder(folder: Path, *, embedded: bool = False, dynamic: bool = True) -> Path:
    """Write the folder; `embedded`: with distilled guidance. VAE and CLIP's configuration are the embedded model's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    config = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = new_flux(int(config["hidden_size"]), embedded=embedded)
        t5 = T5EncoderModel(
            T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
        )
        clip = CLIPTextModel(CLIPTextConfig(**config))
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.1)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic),
        "vae": vae,
        "text_encoder": clip,
        "tokenizer": CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        "text_encoder_2": t5,
        "tokenizer_2": T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS),
        "transformer": transformer,
    }
    FluxPipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
