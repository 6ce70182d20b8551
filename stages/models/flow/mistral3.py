"""Mistral 3, FLUX.2 [dev]'s text encoder, whose side for pictures stays idle: what its configuration may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import (
    ANY,
    FLAG,
    NONE,
    NOTES,
    Table,
    Values,
    is_whole,
    one_of,
)
from stages.models.flow.base import WordsKind
from stages.models.flow.qwen3 import LANGUAGE_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping

LAYERS = (10, 20, 30)  # that a row is made of
WORDS = WordsKind("tokenizer", "mistral3", has_template=True)


_TEXT: Table = {
    **LANGUAGE_MODEL,
    "model_type": one_of("mistral"),
    "num_hidden_layers": Values(f"a whole number from {LAYERS[-1]} on", lambda given: is_whole(given, LAYERS[-1])),
    "tie_word_embeddings": ANY,
}


def _is_text(given: Any) -> bool:
    return isinstance(given, dict) and all(name in _TEXT and _TEXT[name].holds(each) for name, each in given.items())


MISTRAL3: Table = {
    **NOTES,
    "model_type": one_of("mistral3"),
    "text_config": Values(f"the fields of a Mistral that are known here, of {LAYERS[-1]} layers or more", _is_text),
    "tie_word_embeddings": FLAG,
    "quantization_config": NONE,
    **dict.fromkeys(  # of pictures, which are not read, and of numbers on disk
        (
            *("architectures", "vision_config", "image_token_index", "image_token_id", "projector_hidden_act"),
            *("vision_feature_layer", "multimodal_projector_bias", "spatial_merge_size", "pad_token_id"),
            *("bos_token_id", "eos_token_id", "torch_dtype", "dtype", "transformers_version"),
        ),
        ANY,
    ),
}


def mistral3_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of a Mistral 3: the side for text, that for pictures, and the last layer."""
    text, vision = config["text_config"], config["vision_config"]
    width, heads, pairs = (int(text[name]) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    size = int(text.get("head_dim") or width // heads)
    layer = 2 * width * size * (heads + pairs) + 3 * width * int(text["intermediate_size"]) + 2 * width
    is_tied = config.get("tie_word_embeddings", True)
    words = (1 if is_tied else 2) * int(text["vocab_size"]) * width
    total = words + int(text["num_hidden_layers"]) * layer + width
    return total + _vision_parameters(vision) + _joined_parameters(config, int(vision.get("hidden_size", 1024)), width)


def _vision_parameters(config: Mapping[str, Any]) -> int:
    """Return those of patches and layers."""
    width, inner = int(config.get("hidden_size", 1024)), int(config.get("intermediate_size", 4096))
    patches = width * int(config.get("num_channels", 3)) * int(config.get("patch_size", 16)) ** 2
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return patches + width + int(config.get("num_hidden_layers", 24)) * layer


def _joined_parameters(config: Mapping[str, Any], vision: int, text: int) -> int:
    """Return those of the layers between pictures and text."""
    layers = config.get("vision_feature_layer", -1)
    taken = len(layers) if isinstance(layers, list) else 1
    bias = 2 * text if config.get("multimodal_projector_bias", False) else 0
    merger = vision * vision * int(config.get("spatial_merge_size", 2)) ** 2
    return vision + merger + vision * taken * text + text * text + bias
