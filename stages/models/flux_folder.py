"""What a folder of FLUX.1 says of itself (`FluxPipeline`): its parts, its noise levels, and what it can be asked.

The transformer is the part `unet` here as in every store: the network that denoises. Its folder is `transformer`. T5 is
the part `t5`, whose folder is `text_encoder_2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.checks import check_card
from stages.models.fields import (
    ANY,
    COUNT,
    FLAG,
    INDEX,
    NONE,
    NOTES,
    NUMBER,
    OFF,
    POSITIVE,
    TABLES,
    WHOLE,
    Table,
    check_fields,
    listed,
    one_of,
    or_null,
    read_json,
)
from stages.models.hashes import Hashes, with_decided
from stages.models.info import ModelInfo
from stages.models.locate import INDEX as INDEX_FILE
from stages.models.tokenizer_files import check_tokenizer, tokenizer_files
from stages.models.weights import Part, check_part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from stages.models.card import MethodValues
    from stages.spec import ModelSpec

KIND = "FluxPipeline"
CARD = "freescale.json"
SIDE = 1024  # pixels, of the training size, where no card says it
DEV = (28, 3.5)  # steps and guidance scale of FLUX.1 [dev], as its pipeline has them
SCHNELL = (4, 0.0)
PATCH = 2  # latent cells of a token's side
T5_WORDS = ("tokenizer.json", "spiece.model")  # either will do
MOST_TOKENS = 512  # of T5's, as the pipeline has it
FOLDERS = {"unet": "transformer", "t5": "text_encoder_2"}
CLASSES = {
    "unet": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "t5": "T5EncoderModel",
}
METHODS: MethodValues = {
    "*": {"freeu": None},
    "freescale": {"dilate": False, "channel_blur": False, "blur_border": "renormalize", "detail_scale": 3.6},
}
"""What methods have by default here. A detail scale of 3.6 over sigma has the weights of 2 over SDXL's timesteps."""

_TRANSFORMER: Table = {
    **NOTES,
    "patch_size": one_of(1),
    "in_channels": WHOLE,
    "out_channels": NONE,
    "num_layers": WHOLE,
    "num_single_layers": WHOLE,
    "attention_head_dim": WHOLE,
    "num_attention_heads": WHOLE,
    "joint_attention_dim": WHOLE,
    "pooled_projection_dim": WHOLE,
    "guidance_embeds": FLAG,
    "axes_dims_rope": listed(WHOLE),
}
_VAE: Table = {**TABLES["AutoencoderKL"], "shift_factor": or_null(NUMBER)}
_T5: Table = {
    **NOTES,
    "model_type": one_of("t5"),
    "vocab_size": WHOLE,
    "d_model": WHOLE,
    "d_kv": WHOLE,
    "d_ff": WHOLE,
    "num_layers": WHOLE,
    "num_heads": WHOLE,
    "relative_attention_num_buckets": WHOLE,
    "relative_attention_max_distance": WHOLE,
    "layer_norm_epsilon": POSITIVE,
    "feed_forward_proj": one_of("relu", "gated-gelu"),
    "dense_act_fn": one_of("relu", "gelu_new"),
    "is_gated_act": FLAG,
    "is_decoder": OFF,
    "pad_token_id": COUNT,
    "eos_token_id": COUNT,
    "quantization_config": NONE,
    **dict.fromkeys(  # of the decoder, of training, and of numbers on disk
        (
            *("architectures", "num_decoder_layers", "dropout_rate", "classifier_dropout", "initializer_factor"),
            *("is_encoder_decoder", "use_cache", "output_past", "tie_word_embeddings", "scale_decoder_outputs"),
            *("decoder_start_token_id", "n_positions", "task_specific_params"),
            *("transformers_version", "torch_dtype", "dtype", "tie_encoder_decoder", "bos_token_id"),
        ),
        ANY,
    ),
}
_SCHEDULER: Table = {
    **NOTES,
    "num_train_timesteps": WHOLE,
    "shift": POSITIVE,
    "use_dynamic_shifting": FLAG,
    "base_shift": or_null(NUMBER),
    "max_shift": or_null(NUMBER),
    "base_image_seq_len": WHOLE,
    "max_image_seq_len": WHOLE,
    "shift_terminal": or_null(POSITIVE),
    "time_shift_type": one_of("exponential", "linear"),
    "invert_sigmas": OFF,
    "stochastic_sampling": OFF,
    "use_karras_sigmas": OFF,
    "use_exponential_sigmas": OFF,
    "use_beta_sigmas": OFF,
}
_INDEX: Table = {**INDEX, "transformer": ANY}
_OWN: Mapping[str, Table] = {
    "unet": _TRANSFORMER,
    "vae": _VAE,
    "text_encoder": TABLES["CLIPTextModel"],
    "t5": _T5,
}


def flux_info(
    spec: ModelSpec,
    root: Path,
    home: Path,
    values: Callable[[Mapping[str, Any], MethodValues], MethodValues],
    *,
    has_weights: bool,
) -> ModelInfo:
    """Return what a FLUX folder says of itself; `values` joins what holds of methods here with its card's.

    Raises `SpecError` for a folder that cannot serve.
    """
    check_fields(root / INDEX_FILE, _INDEX, read_json(root / INDEX_FILE), KIND)
    card = read_json(root / CARD) if (root / CARD).is_file() else {}
    check_card(root / CARD, card, is_video=False)
    parts = {part: _part(root / FOLDERS.get(part, part), part, has_weights) for part in CLASSES}
    _check_widths(root, {name: part.config for name, part in parts.items()})
    path = root / "scheduler" / "scheduler_config.json"
    scheduler = _scheduler(path)
    if has_weights:
        _check_weights(root, parts, home)
    network, vae = parts["unet"].config, parts["vae"].config
    cell = 2 ** (len(vae["block_out_channels"]) - 1)
    steps, guidance = SCHNELL if _is_schnell(network, scheduler) else DEV
    return ModelInfo(
        name=spec.name,
        folder=root,
        native=_native(root, card, PATCH * cell),
        steps=card.get("steps", steps),
        guidance_scale=card.get("guidance_scale", guidance),
        negative_prompt=card.get("negative_prompt", ""),
        solver="euler",
        scheduler=scheduler,
        size_ids=False,
        latent_channels=int(vae["latent_channels"]),
        cell=cell,
        patch=PATCH,
        fingerprints=_fingerprints(root, parts, path, Hashes(home)),
        method_defaults=values(card, METHODS),
        unet_class=CLASSES["unet"],
        folders=FOLDERS,
        configs={name: {"_class_name": part.kind, **part.config} for name, part in parts.items()},
        weight_bytes=sum(path.stat().st_size for path in root.glob("*/*.safetensors")),
        words=root,
        text_tokens=_text_tokens(root),
    )


def _is_schnell(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> bool:
    """Whether a model needs few steps and no guidance: it has neither guidance inside nor a shift by size."""
    return not network.get("guidance_embeds") and not scheduler.get("use_dynamic_shifting")


def _scheduler(path: Path) -> dict[str, Any]:
    """Return the configuration of its noise levels, which its pipeline lays out from 1 to 1 / N."""
    from freescale.flow_levels import FLOW_CLASS

    config = read_json(path)
    if (name := config.get("_class_name")) != FLOW_CLASS:
        raise SpecError(f"model: {path} is of the class {name}; {FLOW_CLASS} works with a {KIND}")
    check_fields(path, _SCHEDULER, config, FLOW_CLASS)
    return {**config, "sigma_grid": "steps"}


def _part(folder: Path, part: str, has_weights: bool) -> Part:
    """Return one network of the folder with its configuration, checked field by field."""
    config, kind = read_json(folder / "config.json"), CLASSES[part]
    if (named := config.get("_class_name", kind)) != kind:
        raise SpecError(f"model: {folder} is of the class {named}; {kind} works there")
    check_fields(folder / "config.json", _OWN[part], config, kind)
    return Part(folder, kind, config, has_weights)


def _check_widths(root: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check what the parts hand to each other. Raises `SpecError`."""
    channels = PATCH**2 * int(configs["vae"].get("latent_channels", 4))
    for name, wanted, what in (
        ("in_channels", channels, "2 x 2 latent cells of its VAE"),
        ("joint_attention_dim", configs["t5"]["d_model"], "its T5"),
        ("pooled_projection_dim", configs["text_encoder"]["hidden_size"], "its CLIP text encoder"),
    ):
        if (given := configs["unet"].get(name)) != wanted:
            raise SpecError(f"model: {root / 'transformer/config.json'} has {name} = {given}; {what} gives {wanted}")


def _check_weights(root: Path, parts: Mapping[str, Part], home: Path) -> None:
    """Check the weights of every part by their headers, and that the tokenizers are there. Raises `SpecError`."""
    known = CacheFile(home / "cache" / "weights.json")
    for part in parts.values():
        check_part(part, known)
    check_tokenizer(root / "tokenizer", parts["text_encoder"].config)
    if not any((root / "tokenizer_2" / name).is_file() for name in T5_WORDS):
        raise SpecError(f"model: {root / 'tokenizer_2'} has no {' and no '.join(T5_WORDS)}; download it again")
    known.save()


def _fingerprints(root: Path, parts: Mapping[str, Part], scheduler: Path, hashes: Hashes) -> dict[str, str]:
    words = [path for name in ("tokenizer", "tokenizer_2") for path in tokenizer_files(root / name)]
    text = [*parts["text_encoder"].files, *parts["t5"].files, *words]
    return {
        "text": with_decided(hashes.files(root, text), {"tokens": _text_tokens(root)}),
        "unet": hashes.files(root, [*parts["unet"].files, scheduler]),
        "vae": hashes.files(root, parts["vae"].files),
    }


def _text_tokens(root: Path) -> int:
    """How many tokens of a prompt T5 reads: 512, or as many as its tokenizer says."""
    path = root / "tokenizer_2" / "tokenizer_config.json"
    length = read_json(path).get("model_max_length", MOST_TOKENS) if path.is_file() else MOST_TOKENS
    return int(min(length, MOST_TOKENS))


def _native(root: Path, card: Mapping[str, Any], grain: int) -> tuple[int, int]:
    """Return (height, width) in pixels: the card's `native`, else 1024 x 1024."""
    given = card.get("native", [SIDE, SIDE])
    if not (isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and n >= 64 for n in given)):
        raise SpecError(f"model: {root} gives the native size {given}; two sides of 64 pixels or more work")
    if any(side % grain for side in given):
        raise SpecError(f"model: {root} gives the native size {given}; sides in multiples of {grain} work")
    return given[0], given[1]
