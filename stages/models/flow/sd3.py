"""Stable Diffusion 3 and 3.5: `StableDiffusion3Pipeline`, with the rows of two CLIPs and those of T5, the part `t5`.

A folder may leave T5 out, as `model_index.json` says then: the stock pipeline puts zeros in place of its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import COUNT, NOTES, TABLES, WHOLE, Table, listed, one_of, or_null
from stages.models.flow.base import SHIFTED_VAE, T5, T5_FILES, FlowFamily, PartKind, WordsKind, index_of, of_vae

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

T5_TOKENS = 256  # of the stock pipeline's prompts, or of the zeros in their place
CLIP = "CLIPTextModelWithProjection"
T5_WORDS = WordsKind("tokenizer_3", "t5", T5_FILES)
TRANSFORMER: Table = {
    **NOTES,
    "sample_size": WHOLE,
    "patch_size": one_of(2),
    "in_channels": WHOLE,
    "out_channels": or_null(WHOLE),
    "num_layers": WHOLE,
    "attention_head_dim": WHOLE,
    "num_attention_heads": WHOLE,
    "joint_attention_dim": WHOLE,
    "caption_projection_dim": WHOLE,
    "pooled_projection_dim": WHOLE,
    "pos_embed_max_size": WHOLE,
    "dual_attention_layers": listed(COUNT),
    "qk_norm": one_of(None, "rms_norm"),
}


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of 3.5 medium, which alone attends twice, of 3.5 large, or of 3, which has no norms of queries."""
    if network.get("dual_attention_layers"):
        return 40, 4.5
    return (28, 3.5) if network.get("qk_norm") else (28, 7.0)


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network, channels = configs["unet"], of_vae(configs)
    encoders = [configs["text_encoder"], configs["text_encoder_2"]]
    yield "in_channels", network.get("in_channels"), channels, "its VAE"
    yield "out_channels", network.get("out_channels") or network.get("in_channels"), channels, "its VAE"
    width = int(network.get("joint_attention_dim", 0))
    if "t5" in configs:
        yield "joint_attention_dim", width, configs["t5"]["d_model"], "its T5"
    widths = sum(int(each["hidden_size"]) for each in encoders)
    yield "joint_attention_dim", width, max(width, widths), "its two CLIP text encoders"
    pooled = sum(int(each.get("projection_dim", 512)) for each in encoders)
    yield "pooled_projection_dim", network.get("pooled_projection_dim"), pooled, "its two CLIP text encoders"
    inner = int(network.get("num_attention_heads", 0)) * int(network.get("attention_head_dim", 0))
    yield "caption_projection_dim", network.get("caption_projection_dim"), inner, "its heads"


def _table(configs: Configs) -> int:
    """Return the tokens of a side of the table of positions."""
    return int(configs["unet"]["pos_embed_max_size"])


SD3 = FlowFamily(
    pipeline="StableDiffusion3Pipeline",
    parts={
        "unet": PartKind("transformer", "SD3Transformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKL", SHIFTED_VAE),
        "text_encoder": PartKind("text_encoder", CLIP, TABLES[CLIP]),
        "text_encoder_2": PartKind("text_encoder_2", CLIP, TABLES[CLIP]),
        "t5": PartKind("text_encoder_3", "T5EncoderModel", T5),
    },
    optional=("t5",),
    words=(WordsKind("tokenizer", "text_encoder"), WordsKind("tokenizer_2", "text_encoder_2"), T5_WORDS),
    index=index_of("transformer", "text_encoder_3", "tokenizer_3"),
    defaults=_defaults,
    misfits=_misfits,
    tokens=T5_WORDS,
    most_tokens=T5_TOKENS,
    ends=1,
    grid={"sigma_grid": "training"},
    table=_table,
    rules=("none", "pi"),
)
