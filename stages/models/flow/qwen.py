"""Qwen-Image: `QwenImagePipeline`, with the rows of Qwen2.5-VL, whose side for pictures stays idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import (
    ANY,
    COUNT,
    NONE,
    NOTES,
    NUMBER,
    OFF,
    POSITIVE,
    WHOLE,
    Table,
    Values,
    listed,
    one_of,
    or_null,
)
from stages.models.flow.base import PATCH, FlowFamily, PartKind, WordsKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

PLACES = 4096  # tokens to each side of the middle that the network's positions are made for
TEXT_TOKENS = 1024  # of a prompt at most
WORDS = WordsKind("tokenizer", "qwen2_5_vl", ("tokenizer.json", "vocab.json"))
TRANSFORMER: Table = {
    **NOTES,
    "patch_size": one_of(PATCH),
    "in_channels": WHOLE,
    "out_channels": WHOLE,
    "num_layers": WHOLE,
    "attention_head_dim": WHOLE,
    "num_attention_heads": WHOLE,
    "joint_attention_dim": WHOLE,
    "axes_dims_rope": listed(WHOLE),
    "guidance_embeds": OFF,
    "pooled_projection_dim": ANY,  # of early files; the network has no pooled row
    "zero_cond_t": OFF,
    "use_additional_t_cond": OFF,
    "use_layer3d_rope": OFF,
}
VAE: Table = {
    **NOTES,
    "base_dim": WHOLE,
    "z_dim": WHOLE,
    "dim_mult": listed(WHOLE),
    "num_res_blocks": WHOLE,
    "attn_scales": one_of([]),
    "temperal_downsample": ANY,  # of videos
    "dropout": NUMBER,
    "input_channels": one_of(3),
    "latents_mean": listed(NUMBER),
    "latents_std": listed(POSITIVE),
}


def _is_rope(given: Any) -> bool:
    """Return whether positions turn as the model was trained."""
    if not isinstance(given, dict) or not given.keys() <= {"rope_type", "type", "mrope_section", "rope_theta"}:
        return False
    return all(given.get(name, "default") in ("default", "mrope") for name in ("rope_type", "type"))


_ROPE = Values("positions of the type default", _is_rope)
_TEXT: Table = {
    **NOTES,
    "model_type": one_of("qwen2_5_vl_text", "qwen2_5_vl"),
    "vocab_size": WHOLE,
    "hidden_size": WHOLE,
    "intermediate_size": WHOLE,
    "num_hidden_layers": WHOLE,
    "num_attention_heads": WHOLE,
    "num_key_value_heads": WHOLE,
    "hidden_act": one_of("silu"),
    "max_position_embeddings": WHOLE,
    "rms_norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "rope_scaling": or_null(_ROPE),
    "rope_parameters": or_null(_ROPE),
    "use_sliding_window": OFF,
    "layer_types": or_null(listed(one_of("full_attention"))),
    "tie_word_embeddings": OFF,
    "quantization_config": NONE,
    "pad_token_id": or_null(COUNT),
    **dict.fromkeys(  # of training, of generation, of pictures in a prompt, and of numbers on disk
        (
            *("architectures", "attention_dropout", "bos_token_id", "eos_token_id", "initializer_range"),
            *("max_window_layers", "sliding_window", "torch_dtype", "dtype", "transformers_version", "use_cache"),
            *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
        ),
        ANY,
    ),
}


def _is_text(given: Any) -> bool:
    return isinstance(given, dict) and all(name in _TEXT and _TEXT[name].holds(each) for name, each in given.items())


QWEN2_5_VL: Table = {
    **_TEXT,
    "text_config": Values("the fields of a Qwen2.5 that are known here, without sliding windows", _is_text),
    "vision_config": ANY,  # no picture is read
}


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the configuration of a Qwen2.5-VL says of its side for text; early files have no place of its own."""
    found: Mapping[str, Any] = config.get("text_config") or config
    return found


def qwen2_5_vl_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of a Qwen2.5-VL: the side for text, that for pictures, and the last layer."""
    text, vision = text_of(config), config["vision_config"]
    width, heads, pairs = (int(text[name]) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    keys = width // heads * pairs
    attention = 2 * width * width + width + 2 * (width * keys + keys)
    layer = attention + 3 * width * int(text["intermediate_size"]) + 2 * width
    words = 2 * int(text["vocab_size"]) * width
    return words + int(text["num_hidden_layers"]) * layer + width + _vision_parameters(vision)


def _vision_parameters(config: Mapping[str, Any]) -> int:
    """Return those of patches, layers, and the layer between pictures and text."""
    width, inner, out = (int(config[name]) for name in ("hidden_size", "intermediate_size", "out_hidden_size"))
    patch = int(config.get("in_channels", 3)) * int(config.get("temporal_patch_size", 2))
    patches = width * patch * int(config.get("patch_size", 14)) ** 2
    layer = 4 * width * width + 4 * width + 3 * width * inner + 2 * inner + width + 2 * width
    joined = width * int(config.get("spatial_merge_size", 2)) ** 2
    return patches + int(config["depth"]) * layer + width + joined * joined + joined + joined * out + out


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of the stock pipeline."""
    return 50, 4.0


def _channels(configs: Configs) -> int:
    return int(configs["vae"]["z_dim"])


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network, channels = configs["unet"], _channels(configs)
    yield "in_channels", network.get("in_channels"), PATCH**2 * channels, "2 x 2 latent cells of its VAE"
    yield "out_channels", network.get("out_channels"), channels, "its VAE"
    width = text_of(configs["qwen2_5_vl"])["hidden_size"]
    yield "joint_attention_dim", network.get("joint_attention_dim"), width, "its Qwen2.5-VL"


QWEN_IMAGE = FlowFamily(
    pipeline="QwenImagePipeline",
    parts={
        "unet": PartKind("transformer", "QwenImageTransformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKLQwenImage", VAE),
        "qwen2_5_vl": PartKind("text_encoder", "Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
    },
    words=(WORDS,),
    defaults=_defaults,
    misfits=_misfits,
    latent_channels=_channels,
    cell=lambda configs: int(2 ** (len(configs["vae"]["dim_mult"]) - 1)),
    tokens=WORDS,
    most_tokens=TEXT_TOKENS,
    side=1328,
    table=lambda configs: 2 * (PLACES - TEXT_TOKENS),
)
