"""Files of adapters for tests: low-rank changes of modules by the names and shapes that are asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
SHAPES_UNET = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"  # of the embedded model
SHAPES_CONV = "lora_unet_input_blocks_1_0_in_layers_2"
SHAPES_TEXT = "lora_te1_text_model_encoder_layers_1_mlp_fc1"
SHAPES = {SHAPES_UNET: (96, 96), SHAPES_CONV: (48, 48, 3, 3), SHAPES_TEXT: (128, 48)}


def low_rank(
    shapes: Mapping[str, tuple[int, ...]],
    rank: int = 2,
    alpha: float | None = None,
    seed: int = 0,
    names: Mapping[str, str] = KOHYA,
) -> dict[str, Tensor]:
    """Return the tensors of a LoRA whose change of each weight, by name and shape, is about as large as the weight."""
    found = {}
    generator = torch.Generator().manual_seed(seed)
    for name, (out, *inner) in shapes.items():
        ones = (1,) * (len(inner) - 1)
        size = 0.7 / math.sqrt(math.prod(inner))
        found[f"{name}.{names['down']}"] = torch.randn(rank, *inner, generator=generator) * size
        found[f"{name}.{names['up']}"] = torch.randn(out, rank, *ones, generator=generator)
        if alpha is not None:
            found[f"{name}.{names['alpha']}"] = torch.tensor(alpha)
    return found


def lora_file(path: Path, tensors: Mapping[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """Write a file of tensors, or of a LoRA for the embedded model; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(low_rank(SHAPES) if tensors is None else tensors), path, metadata)
    return path


def edited(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Write a file anew with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
