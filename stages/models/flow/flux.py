"""FLUX.1 (dev, schnell, Krea): `FluxPipeline`, with CLIP's pooled row and the rows of T5, the part `t5`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import FLAG, TABLES, WHOLE, Table
from stages.models.flow.base import FLUX_LIKE, PATCH, SHIFTED_VAE, T5, T5_FILES, FlowFamily, PartKind, WordsKind, of_vae

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

T5_WORDS = WordsKind("tokenizer_2", "t5", T5_FILES)
TRANSFORMER: Table = {
    **FLUX_LIKE,
    "pooled_projection_dim": WHOLE,
    "guidance_embeds": FLAG,
}


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of [dev], or of [schnell], which has neither guidance inside nor a shift by size."""
    is_schnell = not network.get("guidance_embeds") and not scheduler.get("use_dynamic_shifting")
    return (4, 0.0) if is_schnell else (28, 3.5)


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network = configs["unet"]
    channels = PATCH**2 * of_vae(configs)
    yield "in_channels", network.get("in_channels"), channels, "2 x 2 latent cells of its VAE"
    yield "joint_attention_dim", network.get("joint_attention_dim"), configs["t5"]["d_model"], "its T5"
    width = configs["text_encoder"]["hidden_size"]
    yield "pooled_projection_dim", network.get("pooled_projection_dim"), width, "its CLIP text encoder"


FLUX = FlowFamily(
    pipeline="FluxPipeline",
    parts={
        "unet": PartKind("transformer", "FluxTransformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKL", SHIFTED_VAE),
        "text_encoder": PartKind("text_encoder", "CLIPTextModel", TABLES["CLIPTextModel"]),
        "t5": PartKind("text_encoder_2", "T5EncoderModel", T5),
    },
    words=(WordsKind("tokenizer", "text_encoder"), T5_WORDS),
    defaults=_defaults,
    misfits=_misfits,
    tokens=T5_WORDS,
    ends=1,
)
