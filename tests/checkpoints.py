"""Toy checkpoints as people have them: networks of the real classes, and their tensors in the original layout."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.models.fields import read_json
from stages.models.files.keys import diffusers_names
from stages.models.folder import EMBEDDED
from stages.models.weights import current

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stages.models.files.keys import Layout

XL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 6),
    "cross_attention_dim": 80,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 48,
    "use_linear_projection": True,
    "norm_num_groups": 16,
}
SD_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIP_G = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 10,
    "num_attention_heads": 3,
    "projection_dim": 48,
}


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random numbers, none of them zero: a layer of zeros would hide an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + 0.01)
    return network.eval()


@cache
def network(kind: str, which: str = "xl") -> Any:
    """Return a toy network by its part: `unet`, `vae`, `text_encoder` or `text_encoder_2`."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if kind == "unet":
        return lively(UNet2DConditionModel(**(XL_UNET if which == "xl" else SD_UNET)))
    if kind == "vae":
        return lively(AutoencoderKL(**VAE))
    name = "CLIPTextModel" if kind == "text_encoder" else "CLIPTextModelWithProjection"
    config = {"vocab_size": 49408, **(CLIP_L if kind == "text_encoder" else CLIP_G)}
    return lively(getattr(transformers, name)(transformers.CLIPTextConfig(**config)))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by the names that the files of its folder have."""
    found = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("position_ids")}
    if type(module).__name__ == "CLIPTextModel":
        return {f"text_model.{current(name, 'CLIPTextModel')}": tensor for name, tensor in found.items()}
    return found


def packed(layout: Layout, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of diffusers or transformers as a file of the original layout has them, without a prefix."""
    found = {}
    for original, names in diffusers_names(layout, config, tensors).items():
        tensor = torch.cat([tensors[name] for name in names]) if len(names) > 1 else tensors[names[0]]
        if layout == "vae" and ".attentions." in names[0] and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        if original == "text_projection":
            tensor = tensor.T
        found[original] = tensor.contiguous()
    return found


PLACES: dict[str, tuple[Layout, str]] = {
    "unet": ("unet", "model.diffusion_model."),
    "vae": ("vae", "first_stage_model."),
    "text_encoder": ("clip", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("open_clip", "conditioner.embedders.1.model."),
}


def original(configs: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts as a checkpoint of SDXL's layout has them."""
    found: dict[str, Tensor] = {}
    for part, tensors in parts.items():
        layout, prefix = PLACES[part]
        if layout == "clip":
            tensors = {f"text_model.{current(name, 'CLIPTextModel')}": tensor for name, tensor in tensors.items()}
        found |= {prefix + name: tensor for name, tensor in packed(layout, configs[part], tensors).items()}
    return found


@cache
def shapes_original() -> dict[str, Tensor]:
    """Return the embedded `shapes` model as a checkpoint of SDXL's layout has it."""
    configs = {part: read_json(EMBEDDED / part / "config.json") for part in PLACES}
    return original(configs, {part: load_file(next((EMBEDDED / part).glob("*.safetensors"))) for part in PLACES})


SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "U8": 1}


def write_header(
    path: Path,
    tensors: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    *,
    hole: bool = False,
) -> Path:
    """Write the header of a safetensors file with these shapes, all of them F16 unless `dtypes` says otherwise.

    With `hole` the file is as long as its header says, and takes no room on the disk.
    """
    found: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, shape in tensors.items():
        dtype = (dtypes or {}).get(name, "F16")
        end = at + math.prod(shape) * SIZES[dtype]
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(found).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        if hole:
            file.truncate(8 + len(header) + at)
    return path


SD_TYPES = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
XL_TYPES = {
    **{name: XL_UNET[name] for name in ("down_block_types", "up_block_types", "use_linear_projection")},
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.x": {**SD_TYPES, "cross_attention_dim": 768, "attention_head_dim": 8},
    "Stable Diffusion 2.x": {
        **SD_TYPES,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {**XL_TYPES, "transformer_layers_per_block": (1, 2, 10)},
    "SSD-1B": {
        **XL_TYPES,
        "transformer_layers_per_block": [1, 2, 4],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    },
    "Segmind Vega": {
        **XL_TYPES,
        "transformer_layers_per_block": [1, 1, 2],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    },
    "KOALA-700M": {
        **XL_TYPES,
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 5),
        "mid_block_type": None,
    },
    "KOALA-1B": {**XL_TYPES, "layers_per_block": 1, "transformer_layers_per_block": (1, 2, 6)},
}
"""The UNets of the families as their authors published them; SSD-1B and kin by the shapes of their files."""
FULL_VAE = {**VAE, "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32}
FULL_TEXTS: dict[str, dict[str, Any]] = {
    "L": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "H": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "G": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
}


@cache
def full_network(kind: str, which: str) -> Any:
    """Return a network at its full size on the meta device: `unet` of a family, `vae`, or `text` L, H or G."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if kind == "unet":
            return UNet2DConditionModel(**PUBLISHED[which])
        if kind == "vae":
            return AutoencoderKL(**FULL_VAE)
        config = CLIPTextConfig(vocab_size=49408, projection_dim=FULL_TEXTS[which]["hidden_size"], **FULL_TEXTS[which])
        return (CLIPTextModelWithProjection if which == "G" else CLIPTextModel)(config)


@cache
def full_shapes(family: str, kind: str = "all") -> dict[str, tuple[int, ...]]:
    """Return the shapes of a published checkpoint of a family, or of its UNet alone, by original names."""
    unet = full_network("unet", family)
    parts: list[tuple[Layout, str, Any]] = [("unet", "model.diffusion_model.", unet)]
    if kind == "all":
        parts.append(("vae", "first_stage_model.", full_network("vae", "")))
        if family == "Stable Diffusion 1.x":
            parts.append(("clip", "cond_stage_model.transformer.", full_network("text", "L")))
        elif family == "Stable Diffusion 2.x":
            parts.append(("open_clip", "cond_stage_model.model.", full_network("text", "H")))
        else:
            parts.append(("clip", "conditioner.embedders.0.transformer.", full_network("text", "L")))
            parts.append(("open_clip", "conditioner.embedders.1.model.", full_network("text", "G")))
    found: dict[str, tuple[int, ...]] = {}
    for layout, prefix, module in parts:
        config = module.config if layout in ("unet", "vae") else {}
        found |= {prefix + name: tuple(each.shape) for name, each in packed(layout, config, tensors_of(module)).items()}
    return found
