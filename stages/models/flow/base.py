"""What a family of transformers says of its folders: the parts of its pipeline, what they may hold, and its defaults.

The transformer is the part `unet` here as in every store: the network that denoises. Its folder is `transformer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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
    listed,
    one_of,
    or_null,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from stages.models.card import MethodValues

    Configs = Mapping[str, Mapping[str, Any]]  # of each network, by part
    Joined = tuple[str, Configs]  # the class of the network that denoises, and all configurations
    Misfit = tuple[str, Any, Any, str]  # a field of the transformer's, its value, the one that fits, and to what


SHIFTED_VAE: Table = {**TABLES["AutoencoderKL"], "shift_factor": or_null(NUMBER)}
T5: Table = {
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
FLUX_LIKE: Table = {
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
}
"""What the transformers of FLUX.1, Chroma and FLUX.2 have in common."""
PATCH = 2  # latent cells of a token's side
SECOND, BOUNDARY = "unet_2", "boundary_ratio"  # the transformer of Wan 2.2 below a share of the timesteps
T5_FILES = ("tokenizer.json", "spiece.model")
SCHEDULER: Table = {
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
METHODS: MethodValues = {
    "*": {"freeu": None},
    "freescale": {"dilate": False, "channel_blur": False, "blur_border": "renormalize", "detail_scale": 3.6},
    "swift": {"patches_only": False, "dilation": 0.0},
    "draft": {"patches_only": False, "dilation": 0.0},
    "scalediff": {"restart": 0.4, "band": 0.25},
}
"""What methods have by default. A detail scale of 3.6 over sigma has the weights of 2 over SDXL's timesteps."""


def index_of(*parts: str) -> Table:
    """Return what `model_index.json` may say, with further `parts`."""
    return {**INDEX, **dict.fromkeys(parts, ANY)}


def halved(configs: Configs) -> int:
    """Return the pixels of a cell of an `AutoencoderKL`, which halves the sides after each block but the last."""
    return int(2 ** (len(configs["vae"]["block_out_channels"]) - 1))


def of_vae(configs: Configs) -> int:
    """Return the channels of an `AutoencoderKL`'s latents."""
    return int(configs["vae"].get("latent_channels", 4))


@dataclass(frozen=True)
class PartKind:
    """One network of a pipeline: its folder, its class and what its configuration may say."""

    folder: str
    name: str  # of the class
    fields: Table


@dataclass(frozen=True)
class WordsKind:
    """One tokenizer of a pipeline: of which text encoder it is, and the files of which any one will do."""

    folder: str
    part: str
    any_of: tuple[str, ...] = ("tokenizer.json",)
    has_template: bool = False  # whether prompts are put into a chat template of its own


@dataclass(frozen=True)
class VideoKind:
    """What videos a family makes where no card says it."""

    frames: int  # that it was trained for
    fps: float  # of playback
    time_cell: int  # frames of a latent frame; the first one is one frame


@dataclass(frozen=True)
class OtherScheduler:
    """A class of scheduler that is read as noise levels of flow matching: its fields, and what they are in ours."""

    fields: Table
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    solver: str  # of ours


@dataclass(frozen=True)
class FlowFamily:
    """One class of pipeline around a transformer that was trained by flow matching."""

    pipeline: str  # the class that a folder names
    parts: Mapping[str, PartKind]  # `unet`, `vae` and text encoders
    words: tuple[WordsKind, ...]
    tokens: WordsKind  # the tokenizer that counts a prompt
    defaults: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[int, float]]  # steps, guidance scale
    misfits: Callable[[Configs], Iterator[Misfit]]  # what parts hand to each other, each as it is and as it must be
    index: Table = field(default_factory=lambda: index_of("transformer"))  # what `model_index.json` may say
    scheduler: Table = field(default_factory=lambda: SCHEDULER)
    methods: MethodValues = field(default_factory=lambda: METHODS)  # what methods have by default here
    latent_channels: Callable[[Configs], int] = of_vae  # of what the network is given before it makes tokens
    cell: Callable[[Configs], int] = halved  # pixels of a latent cell's side
    most_tokens: int = 512  # of a prompt
    ends: int = 0  # tokens that the tokenizer adds to a prompt
    patch: int = PATCH
    side: int = 1024  # pixels, of the training size, where no card says it
    grid: Mapping[str, Any] = field(default_factory=lambda: {"sigma_grid": "steps"})  # how noise levels are laid out
    optional: tuple[str, ...] = ()  # parts that a folder may leave out
    table: Callable[[Configs], int | None] = lambda configs: None  # tokens of a side that there are positions for
    rules: tuple[str, ...] = ()  # of positions, that have a meaning; empty: all
    native: Callable[[Configs], tuple[int, int]] | None = None  # (height, width) in place of `side`
    schedulers: Mapping[str, OtherScheduler] = field(default_factory=dict)  # by their class
    video: Callable[[Configs], VideoKind] | None = None  # None: it makes pictures
    unsaid: tuple[str, ...] = ()  # optional parts that a folder without them need not name
    joined: Callable[[Configs, Mapping[str, Any]], Joined] | None = None  # parts that are one network, by the index

    def named_in(self, index: Mapping[str, Any]) -> FlowFamily:
        """Return the family without the optional parts that the index of a folder gives as null, or does not name."""
        absent = [None, None]
        unsaid = {name: absent if name in self.unsaid else None for name in self.parts}
        return self.having(
            [name for name, kind in self.parts.items() if index.get(kind.folder, unsaid[name]) != absent]
        )

    def having(self, parts: Container[str]) -> FlowFamily:
        """Return the family of a folder without optional parts that are not among `parts`.

        Where the text encoder that counts a prompt is missing, CLIP counts it, with the two tokens around it.
        """
        missing = [name for name in self.optional if name not in parts]
        if not missing:
            return self
        kept = replace(
            self,
            parts={name: kind for name, kind in self.parts.items() if name not in missing},
            words=tuple(words for words in self.words if words.part not in missing),
        )
        return replace(kept, tokens=kept.words[0], most_tokens=77, ends=2) if self.tokens.part in missing else kept
