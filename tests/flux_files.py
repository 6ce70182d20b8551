"""Toy transformers as people have them on disk: in each layout, and with text encoders and VAE in files."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.models.files.transformer_names import NAMES
from tests.checkpoints import packed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from stages.models.files.keys import Layout

PREFIX = "model.diffusion_model."
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra gguf")


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a part's folder."""
    return {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


def original(
    tensors: Mapping[str, Tensor], layout: Layout = "flux", config: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Return a transformer's tensors as its authors write them; `config` is the network's."""
    config, halves = config or {}, {}
    for name, each in tensors.items():
        module = name.removesuffix(".weight").removesuffix(".bias")
        if NAMES[layout].is_swapped(module, config):  # its two halves are in the other order in the original
            halves[name] = each.roll(each.shape[0] // 2, 0)
    return packed(layout, config, {**tensors, **halves})


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


def gguf_file(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a transformer as ComfyUI-GGUF does; return the numbers that it then has.

    Q8_0 where rows are long enough, float32 for all else, original names.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    floats, writer, kind = dict(tensors), gguf.GGUFWriter(str(path), "flux"), gguf.GGMLQuantizationType.Q8_0
    for name, each in tensors.items():
        if each.ndim == 2 and each.shape[1] % 32 == 0:
            few = quantize(each.numpy(), kind)
            writer.add_tensor(name, few, raw_dtype=kind)
            floats[name] = torch.from_numpy(dequantize(few, kind))
        else:
            writer.add_tensor(name, each.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return floats
