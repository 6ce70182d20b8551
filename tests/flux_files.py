"""A toy FLUX as people have it on disk: its transformer in each layout, and its text encoders and VAE in files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from tests.checkpoints import packed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

PREFIX = "model.diffusion_model."
SWAPPED = "norm_out.linear"  # its two halves are in the other order in the original


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a part's folder."""
    return {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


def original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a transformer's tensors as Black Forest Labs write them."""
    halves = {name: each.roll(each.shape[0] // 2, 0) for name, each in tensors.items() if name.startswith(SWAPPED)}
    return packed("flux", {}, {**tensors, **halves})


def layouts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the transformer of a diffusers folder in every layout of single files."""
    own = tensors_in(folder / "transformer")
    bare = original(own)
    return {
        "original": bare,
        "prefixed": {PREFIX + name: each for name, each in bare.items()},
        "diffusers": own,
        "prefixed-diffusers": {f"transformer.{name}": each for name, each in own.items()},
    }


def written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a file of tensors; return its path."""
    save_file({name: each.contiguous() for name, each in tensors.items()}, path)
    return path


def texts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the two text encoders as the files for ComfyUI have them."""
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in tensors_in(folder / "text_encoder").items()}
    return {"clip_l": clip, "t5xxl": tensors_in(folder / "text_encoder_2")}


def vae(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the VAE in the original layout."""
    config: dict[str, Any] = json.loads((folder / "vae" / "config.json").read_text())
    return packed("vae", config, tensors_in(folder / "vae"))


def whole(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint of ComfyUI with all networks in one file."""
    parts = {"text_encoders.clip_l.transformer.": texts(folder)["clip_l"], "vae.": vae(folder)}
    parts |= {PREFIX: layouts(folder)["original"], "text_encoders.t5xxl.transformer.": texts(folder)["t5xxl"]}
    return {prefix + name: each for prefix, own in parts.items() for name, each in own.items()}
