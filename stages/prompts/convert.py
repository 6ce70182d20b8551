"""Pickled textual inversions -> safetensors: those of A1111 (`.pt`) and of diffusers (`learned_embeds.bin`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import Tensor

from stages.errors import SpecError
from stages.models.checkpoint_file import read_plain
from stages.prompts.names import ENDING

if TYPE_CHECKING:
    from pathlib import Path


def convert(file: Path, target: Path) -> tuple[int, ...]:
    """Write the vectors of a pickled embedding, whole or not at all; nothing in the file is run. Return their shape.

    Raises `SpecError` for a file with anything but tensors and plain values in it, and for a target that is there.
    """
    if not file.is_file():
        raise SpecError(f"file: {str(file)!r} is not a file")
    if target.suffix != ENDING or target.exists():
        what = "is there already" if target.exists() else f"does not end in {ENDING}"
        raise SpecError(f"target: {str(target)!r} {what}; name a new file that ends in {ENDING}")
    tensors = {name: each.detach().float().contiguous() for name, each in _vectors(file, read_plain(file)).items()}
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(save(tensors))
    os.replace(partial, target)
    return tuple(next(iter(tensors.values())).shape)


def _vectors(file: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the tensors of an embedding by the names that they have in safetensors. Raises `SpecError`."""
    found = loaded.get("string_to_param", loaded) if isinstance(loaded, Mapping) else loaded
    tensors = {str(name): each for name, each in found.items()} if isinstance(found, Mapping) else {}
    if not tensors or not all(isinstance(each, Tensor) and each.ndim in (1, 2) for each in tensors.values()):
        raise SpecError(f"file: {str(file)!r} holds no vectors of an embedding; string_to_param, or one tensor, works")
    if {"clip_l", "clip_g"} <= set(tensors):
        return {name: tensors[name] for name in ("clip_l", "clip_g")}
    if len(tensors) > 1:
        raise SpecError(f"file: {str(file)!r} holds {len(tensors)} embeddings; a file of one works")
    return {"emb_params": next(iter(tensors.values()))}
