"""Configurations of Wan 2.1 and of Wan 2.2 A14B as model folders without weights: enough to plan with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.flux_folder import T5

if TYPE_CHECKING:
    from pathlib import Path

Size = Literal["1.3B", "14B", "A14B"]
WIDTHS: dict[str, dict[str, int]] = {
    "1.3B": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "14B": {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
}
TRANSFORMER: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
MEAN += [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
DEVIATION = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
DEVIATION += [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]
WAN_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": MEAN,
    "latents_std": DEVIATION,
}
UMT5: dict[str, Any] = {**T5, "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": 256384}
SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "final_sigmas_type": "zero",
    "solver_order": 2,
    "solver_type": "bh2",
    "timestep_spacing": "linspace",
}


def write_wan(folder: Path, size: Size) -> Path:
    """Write the folder and return it."""
    parts = {
        "transformer/config.json": TRANSFORMER | WIDTHS[size.removeprefix("A")],
        "vae/config.json": WAN_VAE,
        "text_encoder/config.json": UMT5,
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {"_class_name": "WanPipeline"},
    }
    if size == "A14B":
        second = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
        parts |= {
            "transformer_2/config.json": TRANSFORMER | WIDTHS[size.removeprefix("A")],
            "model_index.json": {"_class_name": "WanPipeline", **second},
        }
    for name, values in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return folder
