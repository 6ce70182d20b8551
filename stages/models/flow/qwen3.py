"""Qwen3, the text encoder of several families: what its configuration may say, and the tokenizer beside it."""

from __future__ import annotations

from typing import Any

from stages.models.fields import (
    ANY,
    COUNT,
    FLAG,
    NONE,
    NOTES,
    OFF,
    POSITIVE,
    WHOLE,
    Table,
    Values,
    listed,
    one_of,
    or_null,
)
from stages.models.flow.base import WordsKind

WORDS = WordsKind("tokenizer", "qwen3", has_template=True)


def _is_plain_rope(given: Any) -> bool:
    """Return whether positions turn as the model was trained, at one pace for all layers."""
    is_plain = isinstance(given, dict) and given.get("rope_type", "default") == "default"
    return is_plain and given.keys() <= {"rope_type", "rope_theta"} and POSITIVE.holds(given.get("rope_theta", 1))


LANGUAGE_MODEL: Table = {
    **NOTES,
    "vocab_size": WHOLE,
    "hidden_size": WHOLE,
    "intermediate_size": WHOLE,
    "num_hidden_layers": WHOLE,
    "num_attention_heads": WHOLE,
    "num_key_value_heads": WHOLE,
    "head_dim": WHOLE,
    "hidden_act": one_of("silu"),
    "max_position_embeddings": WHOLE,
    "rms_norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "rope_scaling": NONE,
    "rope_parameters": or_null(Values('{"rope_type": "default", "rope_theta": a number above 0}', _is_plain_rope)),
    "sliding_window": NONE,
    "pad_token_id": or_null(COUNT),
    **dict.fromkeys(  # of training, of generation, and of numbers on disk
        (
            *("architectures", "attention_dropout", "bos_token_id", "eos_token_id", "initializer_range"),
            *("torch_dtype", "dtype", "transformers_version", "use_cache"),
        ),
        ANY,
    ),
}
"""What Qwen3 and Mistral have in common."""
QWEN3: Table = {
    **LANGUAGE_MODEL,
    "model_type": one_of("qwen3"),
    "attention_bias": FLAG,
    "use_sliding_window": OFF,
    "max_window_layers": ANY,  # that use it
    "layer_types": or_null(listed(one_of("full_attention"))),
    "tie_word_embeddings": FLAG,
    "quantization_config": NONE,
}
