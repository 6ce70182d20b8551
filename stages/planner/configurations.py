"""What the configurations of a model's parts say of its networks, without building one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stages.models.fields import TEXT_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number, by the name of its dtype."""

TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "num_hidden_layers": 12,
    "projection_dim": 512,
}
"""What transformers takes where the configuration of a CLIP text encoder leaves a field out."""


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a part of a model folder, as its file has it."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    return config


def configurations(folder: Path, part: str, adapter: Path | None = None) -> tuple[str, ...]:
    """The texts of the configurations that a part is made from: all that its traces depend on of a model.

    `adapter` is the folder of the motion modules that a UNet gets.
    """
    folders = (folder / part, *([] if adapter is None else [adapter]))
    return tuple((each / "config.json").read_text(encoding="utf-8") for each in folders)


def text_weights(folder: Path, dtype: str) -> int:
    """Bytes of the CLIP text encoders of a model folder, from their configurations."""
    kinds = {part: kind for part, kind in TEXT_CLASSES.items() if (folder / part / "config.json").is_file()}
    return sum(_encoder_parameters(read_config(folder, part), kind) for part, kind in kinds.items()) * ITEM_BYTES[dtype]


def _encoder_parameters(given: Mapping[str, Any], kind: str) -> int:
    """Number of parameters of a CLIP text encoder of the class `kind`, whatever its file says of `architectures`.

    Embeddings, layers of attention, feed-forward and two norms, and a projection where there is one.
    """
    config = {**TEXT_DEFAULTS, **given}
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    attention = 4 * (width * width + width)
    layer = attention + 2 * width * inner + width + inner + 4 * width
    embeddings = (int(config["vocab_size"]) + int(config["max_position_embeddings"])) * width
    projection = width * int(config["projection_dim"]) if kind == "CLIPTextModelWithProjection" else 0
    return embeddings + int(config["num_hidden_layers"]) * layer + 2 * width + projection
