"""A Wan folder at toy width with random weights, as `WanPipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.flux_folder import WORDS
from tests.toys import new_dense_wan_vae, new_wan, new_wan_vae

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = 12
FRAMES = 5  # two latent frames


def wan_folder(folder: Path, *, unipc: bool = False, experts: bool = False, dense: bool = False) -> Path:
    """Write the folder; `unipc`: with the scheduler of published folders; `experts`, `dense`: as Wan 2.2 A14B, 5B."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae, second = new_wan(), new_dense_wan_vae() if dense else new_wan_vae(), new_wan()
        umt5 = UMT5EncoderModel(
            UMT5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
        )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    parts: dict[str, Any] = {
        "scheduler": UniPCMultistepScheduler(**flow) if unipc else FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae,
        "text_encoder": umt5,
        "tokenizer": T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS),
        "transformer": transformer,
    }
    if experts:
        parts |= {"transformer_2": second, "boundary_ratio": 0.8}
    WanPipeline(**parts, expand_timesteps=dense).save_pretrained(folder)
    card = {"native": [64, 96] if dense else [64, 80], "steps": 4, "frames": FRAMES}
    (folder / "freescale.json").write_text(json.dumps(card))
    return folder
