"""Chroma: `ChromaPipeline`, FLUX.1's tokens and VAE with T5 alone, and true guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import FLAG, WHOLE, Table, or_null
from stages.models.flow.base import (
    FLUX_LIKE,
    PATCH,
    SCHEDULER,
    SHIFTED_VAE,
    T5,
    T5_FILES,
    FlowFamily,
    PartKind,
    WordsKind,
    of_vae,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

WORDS = WordsKind("tokenizer", "t5", T5_FILES)
STEPS, GUIDANCE = 35, 5.0  # of the stock pipeline
TRANSFORMER: Table = {
    **FLUX_LIKE,
    "approximator_num_channels": WHOLE,
    "approximator_hidden_dim": WHOLE,
    "approximator_layers": WHOLE,
}


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    return STEPS, GUIDANCE


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network = configs["unet"]
    channels = PATCH**2 * of_vae(configs)
    yield "in_channels", network.get("in_channels"), channels, "2 x 2 latent cells of its VAE"
    yield "joint_attention_dim", network.get("joint_attention_dim"), configs["t5"]["d_model"], "its T5"


CHROMA = FlowFamily(
    pipeline="ChromaPipeline",
    parts={
        "unet": PartKind("transformer", "ChromaTransformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKL", SHIFTED_VAE),
        "t5": PartKind("text_encoder", "T5EncoderModel", T5),
    },
    words=(WORDS,),
    scheduler={**SCHEDULER, "use_beta_sigmas": or_null(FLAG)},
    defaults=_defaults,
    misfits=_misfits,
    tokens=WORDS,
    ends=1,
)
