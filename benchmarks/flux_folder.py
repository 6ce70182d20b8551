"""FLUX.1 [dev]'s configuration as a model folder without weights: enough to plan with, nothing to render."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.sdxl_folder import TEXT, VAE

if TYPE_CHECKING:
    from pathlib import Path

TRANSFORMER: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
FLUX_VAE: dict[str, Any] = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def write_flux(folder: Path) -> Path:
    """Write the folder and return it."""
    parts = {
        "transformer/config.json": TRANSFORMER,
        "vae/config.json": FLUX_VAE,
        "text_encoder/config.json": TEXT,
        "text_encoder_2/config.json": T5,
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {"_class_name": "FluxPipeline"},
    }
    for name, values in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return folder
