"""SDXL's UNet with random weights, made on the device it runs on, and the words it is told; nothing is downloaded.

On a GPU the real configuration in bfloat16. On a CPU the same topology at a tenth of the width and the depth of one
block, for pictures a quarter as wide: where time goes is alike, seconds are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from freescale.cascade import Level
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
TOPOLOGY = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}


@dataclass(frozen=True)
class Scale:
    """The UNet and the pictures that a device is given."""

    widths: tuple[int, int, int]
    heads: tuple[int, int, int]
    depths: tuple[int, int, int]
    text: int
    base: int  # pixels a side
    dtype: torch.dtype


ON_GPU = Scale((320, 640, 1280), (5, 10, 20), (1, 2, 10), 2048, 1024, torch.bfloat16)
ON_CPU = Scale((32, 64, 128), (1, 2, 4), (1, 1, 1), 128, 256, torch.float32)


def scale_of(device: torch.device) -> Scale:
    """Return what this kind of device is given."""
    return ON_GPU if device.type == "cuda" else ON_CPU


def make_unet(scale: Scale, device: torch.device) -> Any:
    """Return the UNet, without gradients."""
    from diffusers import UNet2DConditionModel

    default = torch.get_default_dtype()
    torch.set_default_dtype(scale.dtype)  # so that float32 weights never exist
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(
                sample_size=scale.base // 8,
                block_out_channels=scale.widths,
                attention_head_dim=scale.heads,
                transformer_layers_per_block=scale.depths,
                cross_attention_dim=scale.text,
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=6 * 256 + 1280,
                **TOPOLOGY,
            )
    finally:
        torch.set_default_dtype(default)
    return unet.eval().requires_grad_(False)


def make_denoiser(scale: Scale, device: torch.device, **options: Any) -> Denoiser:
    """Return a guided denoiser told 77 random tokens."""
    unet = make_unet(scale, device)

    def added(seed: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[scale.base, scale.base, 0, 0, scale.base, scale.base]])
        given = {"text_embeds": normal((1, 1280), seed, "pooled"), "time_ids": ids}
        return {name: x.to(device, scale.dtype) for name, x in given.items()}

    embeds = [normal((1, 77, scale.text), seed, "text").to(device, scale.dtype) for seed in (0, 1)]
    return Denoiser(unet, Conditioning(embeds[0], embeds[1], added(0), added(1)), 7.5, **options)


def make_level(scale: Scale, index: int, factor: int, device: torch.device) -> Level:
    """Return a level `factor` times the base a side, with a made-up reference."""
    base, size = (scale.base, scale.base), (scale.base * factor, scale.base * factor)
    if index == 0:
        return Level(0, base, base)
    shape = (1, 4, size[0] // 8, size[1] // 8)
    tensors = {name: normal(shape, 0, name, index).to(device) for name in ("reference", "noise")}
    return Level(index, size, base, **tensors)
