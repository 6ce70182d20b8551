"""Z-Image and Z-Image-Turbo: `ZImagePipeline`, with the rows of Qwen3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.models.fields import FLAG, NONE, NOTES, POSITIVE, WHOLE, Table, listed, one_of
from stages.models.flow.base import SHIFTED_VAE, FlowFamily, PartKind, of_vae
from stages.models.flow.qwen3 import QWEN3, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Misfit

TURBO_SHIFT = 3.0  # of the noise levels; the base has 6
TRANSFORMER: Table = {
    **NOTES,
    "all_patch_size": one_of([2], (2,)),
    "all_f_patch_size": one_of([1], (1,)),
    "in_channels": WHOLE,
    "dim": WHOLE,
    "n_layers": WHOLE,
    "n_refiner_layers": WHOLE,
    "n_heads": WHOLE,
    "n_kv_heads": WHOLE,
    "norm_eps": POSITIVE,
    "qk_norm": FLAG,
    "cap_feat_dim": WHOLE,
    "siglip_feat_dim": NONE,
    "rope_theta": POSITIVE,
    "t_scale": POSITIVE,
    "axes_dims": listed(WHOLE),
    "axes_lens": listed(WHOLE),
}


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of Turbo, or of the base: nothing but the shift tells their folders apart.

    The pipeline counts guidance from 0, so that its 4, which the model's page shows, is 5 here.
    """
    return (8, 0.0) if scheduler.get("shift", 1.0) <= TURBO_SHIFT else (50, 5.0)


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network = configs["unet"]
    yield "in_channels", network.get("in_channels"), of_vae(configs), "its VAE"
    yield "cap_feat_dim", network.get("cap_feat_dim"), configs["qwen3"]["hidden_size"], "its Qwen3"


Z_IMAGE = FlowFamily(
    pipeline="ZImagePipeline",
    parts={
        "unet": PartKind("transformer", "ZImageTransformer2DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKL", SHIFTED_VAE),
        "qwen3": PartKind("text_encoder", "Qwen3Model", QWEN3),
    },
    words=(WORDS,),
    defaults=_defaults,
    misfits=_misfits,
    tokens=WORDS,
    ends=8,  # of the template: three before a prompt and five after it
)
