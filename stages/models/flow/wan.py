"""Wan 2.1 and 2.2, text to video: `WanPipeline`, with the rows of UMT5, the part `umt5`, and a causal VAE of videos.

Wan 2.2 A14B has two transformers, of which one works at noise levels above `boundary_ratio`, the other below. Wan 2.2
5B has a VAE of larger cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.fields import (
    ANY,
    BETA,
    FLAG,
    NONE,
    NOTES,
    NUMBER,
    OFF,
    POSITIVE,
    WHOLE,
    Table,
    listed,
    one_of,
    or_null,
)
from stages.models.flow.base import (
    BOUNDARY,
    METHODS,
    PATCH,
    SECOND,
    T5,
    T5_FILES,
    FlowFamily,
    OtherScheduler,
    PartKind,
    VideoKind,
    WordsKind,
    index_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.flow.base import Configs, Joined, Misfit

WORDS = WordsKind("tokenizer", "umt5", T5_FILES)
SMALL, LARGE, DENSE = (480, 832), (720, 1280), (704, 1280)  # pixels: the training sizes of 1.3B, of 14B, of 2.2 5B
SMALL_LAYERS = 30  # of 1.3B; 14B has 40
TIME_CELL = 4
PAIR = "WanTransformerPair"  # the class of both transformers of Wan 2.2 as one network (`stages.models.wan_pair`)
TRANSFORMER: Table = {
    **NOTES,
    "patch_size": one_of([1, PATCH, PATCH]),
    "num_attention_heads": WHOLE,
    "attention_head_dim": WHOLE,
    "in_channels": WHOLE,
    "out_channels": WHOLE,
    "text_dim": WHOLE,
    "freq_dim": WHOLE,
    "ffn_dim": WHOLE,
    "num_layers": WHOLE,
    "cross_attn_norm": FLAG,
    "qk_norm": one_of("rms_norm_across_heads"),
    "eps": POSITIVE,
    "image_dim": NONE,  # of image to video
    "added_kv_proj_dim": NONE,
    "rope_max_seq_len": WHOLE,
    "pos_embed_seq_len": NONE,
}
VAE: Table = {
    **NOTES,
    "base_dim": WHOLE,
    "decoder_base_dim": or_null(WHOLE),
    "z_dim": WHOLE,
    "dim_mult": listed(WHOLE),
    "num_res_blocks": WHOLE,
    "attn_scales": one_of([]),
    "temperal_downsample": one_of([False, True, True]),
    "dropout": NUMBER,
    "latents_mean": listed(NUMBER),
    "latents_std": listed(POSITIVE),
    "is_residual": FLAG,
    "in_channels": one_of(3, 12),
    "out_channels": one_of(3, 12),
    "patch_size": one_of(None, 2),
    "scale_factor_temporal": one_of(TIME_CELL),
    "scale_factor_spatial": one_of(8, 16),
    "clip_output": ANY,  # frames are stored unclipped
}
UMT5: Table = {
    **T5,
    "model_type": one_of("umt5"),
    "scalable_attention": ANY,  # of training
    "tokenizer_class": ANY,
}
UNIPC: Table = {
    **NOTES,
    "num_train_timesteps": WHOLE,
    "prediction_type": one_of("flow_prediction"),
    "use_flow_sigmas": one_of(True),
    "flow_shift": POSITIVE,
    "final_sigmas_type": one_of("zero"),
    "shift_terminal": NONE,
    **dict.fromkeys(
        (
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"),
            *("thresholding", "rescale_betas_zero_snr"),
        ),
        OFF,
    ),
    "solver_order": one_of(2),
    "solver_type": one_of("bh2"),
    "predict_x0": one_of(True),
    "lower_order_final": one_of(True),
    "disable_corrector": one_of([]),
    "solver_p": NONE,
    **dict.fromkeys(  # of noise levels that it would have without `use_flow_sigmas`, and of what is off
        (
            *("beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing", "steps_offset"),
            *("dynamic_thresholding_ratio", "sample_max_value", "time_shift_type", "sigma_min", "sigma_max"),
        ),
        ANY,
    ),
}


def _from_unipc(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the noise levels of a `UniPCMultistepScheduler` as those of flow matching."""
    from freescale.flow_levels import FLOW_CLASS

    return {
        "_class_name": FLOW_CLASS,
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "shift": config.get("flow_shift", 1.0),
        "sigma_grid": "unipc",
    }


def _defaults(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[int, float]:
    """Return those of the stock pipeline."""
    return 50, 5.0


def _channels(configs: Configs) -> int:
    return int(configs["vae"].get("z_dim", 16))


def _native(configs: Configs) -> tuple[int, int]:
    """Return the training size: 2.2 5B is known by its VAE, 1.3B by its few layers."""
    if configs["vae"].get("is_residual"):
        return DENSE
    return SMALL if int(configs["unet"].get("num_layers", 40)) <= SMALL_LAYERS else LARGE


def _video(configs: Configs) -> VideoKind:
    """Return what it was trained on: 5 seconds, of 2.2 5B at 24 frames a second."""
    is_dense = configs["vae"].get("is_residual")
    return VideoKind(frames=121 if is_dense else 81, fps=24.0 if is_dense else 16.0, time_cell=TIME_CELL)


def _cell(configs: Configs) -> int:
    """Return the pixels of a latent cell's side: a halving after each block but the last, of patches of pixels."""
    vae = configs["vae"]
    return int(2 ** (len(vae.get("dim_mult", (1, 2, 4, 4))) - 1)) * int(vae.get("patch_size") or 1)


def _table(configs: Configs) -> int:
    """Return the tokens of a side that the network's positions are made for."""
    return int(configs["unet"].get("rope_max_seq_len", 1024))


def _misfits(configs: Configs) -> Iterator[Misfit]:
    network, channels = configs["unet"], _channels(configs)
    yield "in_channels", network.get("in_channels", 16), channels, "its VAE"
    yield "out_channels", network.get("out_channels", 16), channels, "its VAE"
    second = configs.get(SECOND, network)
    for name in sorted({*network, *second} - NOTES.keys()):
        yield name, network.get(name), second.get(name), "its transformer_2"
    yield "text_dim", network.get("text_dim", 4096), configs["umt5"]["d_model"], "its UMT5"


def _joined(configs: Configs, index: Mapping[str, Any]) -> Joined:
    """Return both transformers as one network, or the only one. Raises `SpecError` for one without a boundary."""
    boundary = index.get(BOUNDARY)
    if (SECOND in configs) != (boundary is not None):
        raise SpecError(
            f"model: model_index.json has boundary_ratio = {boundary} with {'two' if boundary is None else 'one'} of "
            "transformer and transformer_2; Wan 2.2 has both and a boundary, Wan 2.1 neither"
        )
    if boundary is None:
        return str(configs["unet"]["_class_name"]), configs
    both = {**configs["unet"], "_class_name": PAIR, BOUNDARY: boundary}
    return PAIR, {**{name: each for name, each in configs.items() if name != SECOND}, "unet": both}


WAN = FlowFamily(
    pipeline="WanPipeline",
    parts={
        "unet": PartKind("transformer", "WanTransformer3DModel", TRANSFORMER),
        SECOND: PartKind("transformer_2", "WanTransformer3DModel", TRANSFORMER),
        "vae": PartKind("vae", "AutoencoderKLWan", VAE),
        "umt5": PartKind("text_encoder", "UMT5EncoderModel", UMT5),
    },
    optional=(SECOND,),
    unsaid=(SECOND,),
    joined=_joined,
    words=(WORDS,),
    index={
        **index_of("transformer", "transformer_2"),
        **dict.fromkeys(("image_encoder", "image_processor"), one_of([None, None])),
        BOUNDARY: or_null(BETA),
        "expand_timesteps": or_null(FLAG),  # to every token the same one, where a video is made of text alone
    },
    defaults=_defaults,
    misfits=_misfits,
    latent_channels=_channels,
    cell=_cell,
    tokens=WORDS,
    ends=1,
    grid={"sigma_grid": "training"},
    methods={**METHODS, "freescale": {**METHODS["freescale"], "upsample": "latent", "interpolation": "bilinear"}},
    native=_native,
    table=_table,
    schedulers={"UniPCMultistepScheduler": OtherScheduler(UNIPC, _from_unipc, "unipc")},
    video=_video,
)
