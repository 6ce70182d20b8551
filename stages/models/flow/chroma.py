"""Chroma: `ChromaPipeline`, FLUX.1's tokens and VAE with T5 alone, and true guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import FLAG, NONE, NOTES, WHOLE, Table, listed, one_of, or_null
from stages.models.flow.base import (
    METHODS,
    SCHEDULER,
    SHIFTED_VAE,
    T5,
    FlowFamily,
    PartKind,
    WordsKind,
    halved,
    index_of,
    of_vae,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

PATCH = 2  # latent cells of a token's side
WORDS = WordsKind("tokenizer", "t5", ("tokenizer.json", "spiece.model"))
STEPS, GUIDANCE = 35, 5.0  # of the stock pipeline
TRANSFORMER: Table = {
    **NOTES,
    "patch_size": one_of(1),
    "in_channels": WHOLE,
    "out_channels": NONE,
    "num_layers": WHOLE,
    "num_single_layers": WHOLE,
    "attention_head_dim": WHOLE,
    "num_attention_heads": WHOLE,
    "joint_attention_dim": WHOLE,
    "axes_dims_rope": listed(WHOLE),
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
    index=index_of("transformer"),
    scheduler={**SCHEDULER, "use_beta_sigmas": or_null(FLAG)},
    methods=METHODS,
    defaults=_defaults,
    misfits=_misfits,
    latent_channels=of_vae,
    cell=halved,
    tokens=WORDS,
    most_tokens=512,
    ends=1,
    patch=PATCH,
)
