"""VideoCrafter2's `model.ckpt` -> a diffusers folder in safetensors (`docs/how-to/convert-videocrafter2.md`).

Nothing in the file is run: `torch.load(weights_only=True)` reads tensors and refuses all else. Every tensor must have
a place and every place a tensor of its shape, or nothing is written. The folder appears whole, by a rename.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stages.errors import SpecError
from stages.models.checkpoint_file import listed, read_checkpoint, shapes_of
from stages.models.videocrafter_keys import DROPPED, PREFIXES, text_names, unet_name, vae_name

if TYPE_CHECKING:
    from pathlib import Path

Weights = Mapping[str, Tensor]
SPACE = 1.05  # of the file: what the folder takes at most

SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
CARD: Mapping[str, Any] = {
    "native": [320, 512],
    "frames": 16,
    "steps": 50,
    "guidance_scale": 12.0,
    "negative_prompt": "",
    "fps": 10,
    "motion_fps": 28,
    "dynamic_scale": [0.7, 400],
    "pad_token_id": 0,
}
INDEX: Mapping[str, Any] = {
    "_class_name": "VideoCrafter2Pipeline",
    "unet": ["stages.models.videocrafter", "VideoCrafterUNet"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


@dataclass(frozen=True)
class Architecture:
    """The three networks; a field is what differs from their classes' defaults. The defaults are VideoCrafter2."""

    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=lambda: {"block_out_channels": (128, 256, 512, 512)})
    text: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,  # of 24: the last but one is what the UNet was trained on
            "num_attention_heads": 16,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
        }
    )
    card: Mapping[str, Any] = field(default_factory=lambda: dict(CARD))


def convert(file: Path, folder: Path, tokenizer: Path, architecture: Architecture | None = None) -> None:
    """Write `folder` from the checkpoint `file`; `tokenizer` is a CLIP tokenizer's folder or its merges, `.txt.gz`.

    Raises `SpecError` in one sentence, and writes nothing, for whatever cannot be converted.
    """
    from stages.models.networks import quiet_diffusers
    from stages.models.videocrafter import empty_networks, load_tokenizer

    quiet_diffusers()
    architecture = architecture or Architecture()
    if folder.exists():
        raise SpecError(f"folder: {str(folder)!r} exists; name one that does not")
    words = load_tokenizer(tokenizer, int(architecture.text["vocab_size"]))
    given = read_checkpoint(file)
    networks = empty_networks(architecture.unet, architecture.vae, architecture.text)
    placed = arranged(given, {part: shapes_of(network) for part, network in networks.items()})
    del given  # each part is freed once it is written
    _check_space(file, folder)
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    try:
        for part, network in networks.items():
            network.load_state_dict(placed.pop(part), assign=True)
            network.save_pretrained(partial / part)
        words.save_pretrained(partial / "tokenizer")
        _write(partial / "scheduler" / "scheduler_config.json", SCHEDULER)
        _write(partial / "freescale.json", architecture.card)
        _write(partial / "model_index.json", INDEX)
        os.sync()
        partial.rename(folder)
    except OSError as error:
        raise SpecError(f"folder: {str(folder)!r} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_space(file: Path, folder: Path) -> None:
    parent = next(above for above in folder.absolute().parents if above.is_dir())
    needed, free = int(file.stat().st_size * SPACE), shutil.disk_usage(parent).free
    if free < needed:
        raise SpecError(f"folder: {str(parent)!r} has {free >> 20} MiB free; the converted model takes {needed >> 20}")


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def arranged(given: Weights, wanted: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by part and by the names of `wanted`, which holds every part's names and shapes.

    Raises one `SpecError` that lists all tensors that are missing, unknown or of another shape.
    """
    placed: dict[str, dict[str, Tensor]] = {part: {} for part in wanted}
    extra, misshapen = list[str](), list[str]()
    for key, tensor in given.items():
        if DROPPED.fullmatch(key):
            continue
        part, names = _places(key, wanted)
        if not names:
            extra.append(key)
        for name, piece in zip(names, _pieces(tensor, [wanted[part][name] for name in names]), strict=True):
            placed[part][name] = piece
            if tuple(piece.shape) != wanted[part][name]:
                misshapen.append(f"{key} {tuple(tensor.shape)} for {part}.{name} {wanted[part][name]}")
    missing = [f"{part}.{name}" for part, names_ in wanted.items() for name in names_ if name not in placed[part]]
    if found := listed({"missing": missing, "unknown": extra, "of another shape": misshapen}):
        raise SpecError(f"file: it is not VideoCrafter2's checkpoint: {found}")
    return placed


def _places(key: str, wanted: Mapping[str, Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """Return the part a tensor belongs to and its names there, none if it has no place."""
    for part, prefix in PREFIXES.items():
        if key.startswith(prefix):
            inside = key[len(prefix) :]
            if part == "text_encoder":
                first = "" if "embeddings.token_embedding.weight" in wanted[part] else "text_model."  # transformers < 5
                names = tuple(first + name for name in text_names(inside))
            else:
                name = (unet_name if part == "unet" else vae_name)(inside)
                names = () if name is None else (name,)
            return part, names if all(name in wanted[part] for name in names) else ()
    return "", ()


def _pieces(tensor: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """The tensor for one place, its thirds for three; as a matrix where a kernel of one tap becomes a linear layer."""
    if len(shapes) > 1 and tensor.ndim:
        return [third.clone() for third in tensor.tensor_split(len(shapes))]
    if tensor.ndim > 2 and len(shapes) == 1 and len(shapes[0]) == 2 and tensor[0, 0].numel() == 1:
        return [tensor.flatten(1)]
    return [tensor] * len(shapes)
