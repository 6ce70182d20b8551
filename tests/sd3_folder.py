"""A Stable Diffusion 3 folder at toy width with random weights, as `StableDiffusion3Pipeline.save_pretrained` does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from stages.models.folder import EMBEDDED
from tests.flux_folder import WORDS
from tests.toys import new_sd3

if TYPE_CHECKING:
    from pathlib import Path

T5_TOKENS = 12


def sd3_folder(folder: Path, *, medium: bool = False, t5: bool = True) -> Path:
    """Write the folder; `medium`: 3.5 medium's blocks; `t5`: with T5. VAE and tokenizers are the embedded model's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    config = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    sizes |= {"intermediate_size": 32, "dtype": "float32"}
    clips = [config | sizes | {"hidden_size": width, "projection_dim": width} for width in (8, 12)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = new_sd3(medium=medium)
        texts = [CLIPTextModelWithProjection(CLIPTextConfig(**clip)) for clip in clips]
        encoder = T5EncoderModel(
            T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
        )
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.1)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae,
        "text_encoder": texts[0],
        "tokenizer": CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        "text_encoder_2": texts[1],
        "tokenizer_2": CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        "text_encoder_3": encoder if t5 else None,
        "tokenizer_3": T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS) if t5 else None,
        "transformer": transformer,
    }
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
