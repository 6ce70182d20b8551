"""What the configurations of a model's parts say of its networks, without building one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stages.models.fields import TEXT_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.folder import ModelInfo

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
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


Configs = tuple[str, ...]
"""Configurations as JSON: all that the traces of a part depend on of a model."""


def configurations(info: ModelInfo, part: str) -> Configs:
    """The configurations that the part `unet` or `vae` is made from.

    A UNet's has that of the motion modules that it gets beside it.
    """
    names = (part, *(["motion_adapter"] if part == "unet" and "motion_adapter" in info.configs else []))
    return tuple(json.dumps(info.configs[name], sort_keys=True) for name in names)


def computed(dtype: str) -> str:
    """The name of the dtype that a network computes in whose weights are of `dtype`."""
    return "bfloat16" if dtype == "float8_e4m3fn" else dtype


def text_weights(info: ModelInfo, dtype: str) -> int:
    """Bytes of the text encoders of a model, from their configurations."""
    found = {part: info.configs[part] for part in TEXT_CLASSES if part in info.configs}
    kinds = {part: str(config.get("_class_name", TEXT_CLASSES[part])) for part, config in found.items()}
    count = sum(_encoder_parameters(found[part], kind) for part, kind in kinds.items())
    if "qwen2_5_vl" in info.configs:
        from stages.models.flow.qwen import qwen2_5_vl_parameters  # here, since other models need none of it

        count += qwen2_5_vl_parameters(info.configs["qwen2_5_vl"])
    if "mistral3" in info.configs:
        from stages.models.flow.mistral3 import mistral3_parameters

        count += mistral3_parameters(info.configs["mistral3"])
    others = {"t5": _t5_parameters, "umt5": _umt5_parameters, "qwen3": _qwen3_parameters}
    count += sum(counted(info.configs[part]) for part, counted in others.items() if part in info.configs)
    return count * ITEM_BYTES[dtype]


def _t5_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of T5's encoder: embeddings, layers of attention and feed-forward, norms, and places."""
    width, layers, heads = int(config["d_model"]), int(config["num_layers"]), int(config["num_heads"])
    attention = 4 * width * heads * int(config["d_kv"])
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    forward = (3 if gated else 2) * width * int(config["d_ff"])
    places = int(config.get("relative_attention_num_buckets", 32)) * heads
    return int(config["vocab_size"]) * width + layers * (attention + forward + 2 * width) + width + places


def _umt5_parameters(config: Mapping[str, Any]) -> int:
    """Number of parameters of UMT5's encoder: T5's, with places in every layer."""
    places = int(config.get("relative_attention_num_buckets", 32)) * int(config["num_heads"])
    return _t5_parameters(config) + (int(config["num_layers"]) - 1) * places


def _qwen3_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of Qwen3 without the layer that names the next token."""
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    pairs, size = int(config["num_key_value_heads"]), int(config["head_dim"])
    attention = 2 * width * size * (heads + pairs) + 2 * size
    if config.get("attention_bias"):
        attention += size * (heads + 2 * pairs) + width
    layer = attention + 3 * width * int(config["intermediate_size"]) + 2 * width
    return int(config["vocab_size"]) * width + int(config["num_hidden_layers"]) * layer + width


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
