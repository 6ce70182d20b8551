"""FLUX.2: klein, distilled or base (`Flux2KleinPipeline`), with rows of three layers of Qwen3; [dev] (`Flux2Pipeline`),
with those of Mistral 3 and guidance inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import (
    ANY,
    FLAG,
    POSITIVE,
    TABLES,
    WHOLE,
    Table,
    Values,
    is_whole,
    listed,
    one_of,
    or_null,
)
from stages.models.flow.base import FLUX_LIKE, PATCH, FlowFamily, PartKind, index_of, of_vae
from stages.models.flow.mistral3 import MISTRAL3
from stages.models.flow.mistral3 import WORDS as MISTRAL_WORDS
from stages.models.flow.qwen3 import QWEN3, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

LAYERS = (9, 18, 27)  # of Qwen3 that a row is made of
DEV_TOKENS = 31  # at least, of the template around a prompt: five marks, and a message of 23 words and 3 stops
DEEP = Values(f"a whole number from {LAYERS[-1]} on", lambda given: is_whole(given, LAYERS[-1]))
TRANSFORMER: Table = {
    **FLUX_LIKE,
    "timestep_guidance_channels": WHOLE,
    "mlp_ratio": POSITIVE,
    "rope_theta": POSITIVE,
    "eps": POSITIVE,
    "guidance_embeds": one_of(False),  # of klein
}
VAE: Table = {
    **TABLES["AutoencoderKL"],
    "decoder_block_out_channels": or_null(listed(WHOLE)),
    "batch_norm_eps": POSITIVE,
    "batch_norm_momentum": ANY,  # of training
    "patch_size": one_of([PATCH, PATCH], (PATCH, PATCH)),
    **dict.fromkeys(("scaling_factor", "shift_factor"), ANY),  # which statistics stand in for
}


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of the distilled networks, which take no guidance, or of the base."""
    return (4, 0.0) if network.get("is_distilled") else (50, 4.0)


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network = configs["unet"]
    text, encoder = (
        (configs["qwen3"], "Qwen3") if "qwen3" in configs else (configs["mistral3"]["text_config"], "Mistral 3")
    )
    yield "in_channels", network.get("in_channels"), PATCH**2 * of_vae(configs), "2 x 2 latent cells of its VAE"
    width = len(LAYERS) * text["hidden_size"]
    yield "joint_attention_dim", network.get("joint_attention_dim"), width, f"3 times the width of its {encoder}"


KLEIN = FlowFamily(
    pipeline="Flux2KleinPipeline",
    parts={
        "unet": PartKind("transformer", "Flux2Transformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKLFlux2", VAE),
        "qwen3": PartKind("text_encoder", "Qwen3Model", QWEN3 | {"num_hidden_layers": DEEP}),
    },
    words=(WORDS,),
    index=index_of("transformer") | {"is_distilled": FLAG},
    defaults=_defaults,
    misfits=_misfits,
    tokens=WORDS,
    ends=12,  # of the template: three before a prompt, and nine after it with the empty place for thoughts
    grid={"sigma_grid": "steps", "shift_line": "empirical"},
)
DEV = FlowFamily(
    pipeline="Flux2Pipeline",
    parts={
        "unet": PartKind("transformer", "Flux2Transformer2DModel", TRANSFORMER | {"guidance_embeds": one_of(True)}),
        "vae": PartKind("vae", "AutoencoderKLFlux2", VAE),
        "mistral3": PartKind("text_encoder", "Mistral3ForConditionalGeneration", MISTRAL3),
    },
    words=(MISTRAL_WORDS,),
    defaults=_defaults,
    misfits=_misfits,
    tokens=MISTRAL_WORDS,
    ends=DEV_TOKENS,
    grid=KLEIN.grid,
)
