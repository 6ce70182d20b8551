"""What the configurations of a model may say: the values that are honoured, field by field, for each class.

A field that is not in the table of its class, or has a value that the table does not have, is refused by its name: a
library would take it, this code would not act on it, and the picture would be another one without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Values:
    """The values of a field that are honoured, and how a refusal names them."""

    says: str
    holds: Callable[[Any], bool]


Table = dict[str, Values]


def one_of(*values: Any) -> Values:
    """Return these values alone; a bool is no number."""
    said = ", ".join("null" if v is None else str(v).lower() if isinstance(v, bool) else repr(v) for v in values)
    return Values(
        said, lambda given: any(given == v and isinstance(given, bool) == isinstance(v, bool) for v in values)
    )


def listed(inner: Values) -> Values:
    """Return lists, also nested ones, of such values, and one such value."""

    def holds(given: Any) -> bool:
        return all(map(holds, given)) if isinstance(given, list | tuple) else inner.holds(given)

    return Values(f"{inner.says}, or a list of it", holds)


def or_null(inner: Values) -> Values:
    """Return such values, and none."""
    return Values(f"{inner.says}, or null", lambda given: given is None or inner.holds(given))


def is_whole(given: Any, least: int = 1) -> bool:
    """Return whether it is a whole number from `least` on."""
    return isinstance(given, int) and not isinstance(given, bool) and given >= least


def is_number(given: Any) -> bool:
    """Return whether it is a finite number."""
    return isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < float("inf")


ANY = Values("anything", lambda given: True)  # what changes no picture
WHOLE = Values("a whole number from 1 on", is_whole)
COUNT = Values("a whole number from 0 on", lambda given: is_whole(given, 0))
NUMBER = Values("a number", is_number)
POSITIVE = Values("a number above 0", lambda given: is_number(given) and given > 0)
BETA = Values("a number above 0 and below 1", lambda given: is_number(given) and 0 < given < 1)
FLAG = Values("true, false", lambda given: isinstance(given, bool))
OFF = one_of(False, None)
NONE = one_of(None)
ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")

NOTES: Table = dict.fromkeys(  # what libraries write beside a configuration
    ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values"), ANY
)
AVERAGED: Table = dict.fromkeys(  # of a moving average of weights in training, saved with them
    ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"), ANY
)


def _many(inner: Values) -> Values:
    return Values(f"a list of {inner.says}", lambda given: isinstance(given, list) and all(map(inner.holds, given)))


_UNET: Table = {
    **NOTES,
    **AVERAGED,
    "sample_size": or_null(listed(WHOLE)),
    "in_channels": WHOLE,
    "out_channels": WHOLE,
    "block_out_channels": _many(WHOLE),
    "layers_per_block": listed(WHOLE),
    "downsample_padding": COUNT,
    "mid_block_scale_factor": POSITIVE,
    "act_fn": ACTIVATION,
    "norm_num_groups": WHOLE,
    "norm_eps": POSITIVE,
    "cross_attention_dim": WHOLE,
    "num_attention_heads": NONE,
    "time_cond_proj_dim": NONE,
}
_TEXT_TIME: Table = {
    "addition_embed_type": one_of(None, "text_time"),
    "addition_time_embed_dim": or_null(WHOLE),
    "projection_class_embeddings_input_dim": or_null(WHOLE),
    "encoder_hid_dim": NONE,
    "encoder_hid_dim_type": NONE,
    "use_linear_projection": FLAG,
    "transformer_layers_per_block": listed(WHOLE),
    "reverse_transformer_layers_per_block": or_null(listed(WHOLE)),
}
_UNET_2D: Table = {
    **_UNET,
    **_TEXT_TIME,
    "down_block_types": _many(one_of("DownBlock2D", "CrossAttnDownBlock2D")),
    "up_block_types": _many(one_of("UpBlock2D", "CrossAttnUpBlock2D")),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "attention_head_dim": listed(WHOLE),
    "center_input_sample": FLAG,
    "flip_sin_to_cos": FLAG,
    "freq_shift": COUNT,
    "dropout": NUMBER,
    "only_cross_attention": OFF,
    "mid_block_only_cross_attention": OFF,
    "dual_cross_attention": OFF,
    "cross_attention_norm": NONE,
    "attention_type": one_of("default"),
    "class_embed_type": NONE,
    "class_embeddings_concat": OFF,
    "num_class_embeds": NONE,
    "upcast_attention": or_null(FLAG),
    "addition_embed_type_num_heads": ANY,
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "resnet_skip_time_act": FLAG,
    "resnet_out_scale_factor": POSITIVE,
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": or_null(WHOLE),
    "time_embedding_act_fn": or_null(ACTIVATION),
    "timestep_post_act": or_null(ACTIVATION),
    "conv_in_kernel": WHOLE,
    "conv_out_kernel": WHOLE,
}
_UNET_3D: Table = {
    **_UNET,
    "down_block_types": _many(one_of("DownBlock3D", "CrossAttnDownBlock3D")),
    "up_block_types": _many(one_of("UpBlock3D", "CrossAttnUpBlock3D")),
    "attention_head_dim": listed(WHOLE),
}
_UNET_MOTION: Table = {
    **_UNET,
    **_TEXT_TIME,
    "down_block_types": _many(one_of("DownBlockMotion", "CrossAttnDownBlockMotion")),
    "up_block_types": _many(one_of("UpBlockMotion", "CrossAttnUpBlockMotion")),
    "num_attention_heads": listed(WHOLE),
    "temporal_transformer_layers_per_block": listed(WHOLE),
    "reverse_temporal_transformer_layers_per_block": or_null(listed(WHOLE)),
    "transformer_layers_per_mid_block": or_null(listed(WHOLE)),
    "temporal_transformer_layers_per_mid_block": or_null(listed(WHOLE)),
    "motion_max_seq_length": WHOLE,
    "motion_num_attention_heads": listed(WHOLE),
    "reverse_motion_num_attention_heads": or_null(listed(WHOLE)),
    "use_motion_mid_block": FLAG,
    "mid_block_layers": WHOLE,
}
_MOTION_ADAPTER: Table = {
    **NOTES,
    "block_out_channels": _many(WHOLE),
    "motion_layers_per_block": listed(WHOLE),
    "motion_transformer_layers_per_block": listed(WHOLE),
    "motion_mid_block_layers_per_block": WHOLE,
    "motion_transformer_layers_per_mid_block": listed(WHOLE),
    "motion_num_attention_heads": listed(WHOLE),
    "motion_norm_num_groups": WHOLE,
    "motion_max_seq_length": WHOLE,
    "use_motion_mid_block": FLAG,
    "conv_in_channels": NONE,
}
_VAE: Table = {
    **NOTES,
    **AVERAGED,
    "in_channels": one_of(3),
    "out_channels": one_of(3),
    "down_block_types": _many(one_of("DownEncoderBlock2D")),
    "up_block_types": _many(one_of("UpDecoderBlock2D")),
    "block_out_channels": _many(WHOLE),
    "layers_per_block": WHOLE,
    "act_fn": one_of("silu", "swish"),
    "latent_channels": WHOLE,
    "norm_num_groups": WHOLE,
    "sample_size": ANY,
    "scaling_factor": POSITIVE,
    "shift_factor": one_of(None, 0),
    "latents_mean": NONE,
    "latents_std": NONE,
    "force_upcast": ANY,  # it always computes in float32
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
}
_TEXT: Table = {
    **NOTES,
    "model_type": one_of("clip_text_model"),
    "architectures": ANY,
    "vocab_size": WHOLE,
    "hidden_size": WHOLE,
    "intermediate_size": WHOLE,
    "projection_dim": WHOLE,
    "num_hidden_layers": WHOLE,
    "num_attention_heads": WHOLE,
    "max_position_embeddings": WHOLE,
    "hidden_act": one_of("quick_gelu", "gelu"),
    "layer_norm_eps": POSITIVE,
    "attention_dropout": NUMBER,
    "dropout": NUMBER,
    "pad_token_id": or_null(COUNT),
    "bos_token_id": or_null(COUNT),
    "eos_token_id": or_null(COUNT),
    "output_hidden_states": OFF,
    "output_attentions": OFF,
    "return_dict": one_of(True),
    "is_encoder_decoder": OFF,
    "is_decoder": OFF,
    "add_cross_attention": OFF,
    "chunk_size_feed_forward": one_of(0),
    "quantization_config": NONE,
    **dict.fromkeys(  # of training, of numbers on disk, and of other tasks than encoding
        (
            *("transformers_version", "torch_dtype", "dtype", "initializer_factor", "initializer_range"),
            *("id2label", "label2id", "problem_type", "use_cache", "finetuning_task", "task_specific_params"),
        ),
        ANY,
    ),
}
INDEX: Table = {
    **NOTES,
    **dict.fromkeys(  # the parts; those that are loaded say their class themselves, and the others change nothing
        (
            *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
            *("motion_adapter", "safety_checker", "feature_extractor", "image_encoder"),
        ),
        ANY,
    ),
    "requires_safety_checker": ANY,
    "add_watermarker": ANY,
    "force_zeros_for_empty_prompt": FLAG,
    "requires_aesthetics_score": OFF,
}
_CARD: Table = {
    "native": ANY,  # these two are checked where they are read, with what the model can do
    "method": ANY,
    "steps": Values("a whole number from 1 to 1000", lambda given: is_whole(given) and given <= 1000),
    "guidance_scale": Values("a number from 0 to 50", lambda given: is_number(given) and 0 <= given <= 50),
    "negative_prompt": Values("a text", lambda given: isinstance(given, str)),
    "prediction": one_of("epsilon", "v_prediction", "sample"),
    "ztsnr": one_of("on", "off"),
}
_RATE = Values("a number from 1 to 240", lambda given: is_number(given) and 1 <= given <= 240)
_VIDEO_CARD: Table = {
    **_CARD,
    "frames": ANY,
    "dynamic_scale": ANY,
    "fps": _RATE,
    "motion_fps": _RATE,
    "pad_token_id": or_null(COUNT),
    "motion_adapter": Values("the name of a folder", lambda given: isinstance(given, str) and given != ""),
}
CARDS: Mapping[bool, Table] = {False: _CARD, True: _VIDEO_CARD}
"""The fields of a card, `freescale.json`, by whether the model makes videos."""
TEXT_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
"""The classes of the text encoders, by part."""
TABLES: Mapping[str, Table] = {
    "UNet2DConditionModel": _UNET_2D,
    "UNet3DConditionModel": _UNET_3D,
    "VideoCrafterUNet": _UNET_3D,
    "UNetMotionModel": _UNET_MOTION,
    "MotionAdapter": _MOTION_ADAPTER,
    "AutoencoderKL": _VAE,
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": _TEXT,
}


def check_fields(path: Path, table: Mapping[str, Values], config: Mapping[str, Any], what: str) -> None:
    """Check each field of the configuration at `path` by the table of `what`, a class.

    Raises `SpecError` with the field, its value and what is honoured.
    """
    for name, value in config.items():
        values = table.get(name)
        if values is None:
            near = nearest(name, table)
            hint = f"; the nearest that is known is {near}" if near else ""
            raise SpecError(f"model: {path} has {name} = {_shown(value)}, which is unknown for {what}{hint}")
        if not values.holds(value):
            raise SpecError(f"model: {path} has {name} = {_shown(value)}; for {what} it must be {values.says}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises `SpecError` naming the file."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"model: {path} is missing; download it again") from None
    except UnicodeDecodeError:
        raise SpecError(f"model: {path} is not UTF-8 text; download it again") from None
    except OSError as error:
        raise SpecError(f"model: {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"model: {path} is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise SpecError(f"model: {path} holds {_shown(loaded)}; an object of fields and values works")
    return loaded
