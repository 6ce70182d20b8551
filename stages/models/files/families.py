"""The families of checkpoints, and the configuration of each network: what shapes say, and what only the family says.

Widths, depths and levels are read off the shapes of a file. Heads, activations, the scale of latents and the noise
levels are not in it; they are written here for each family. Sources: the configurations that the authors published
with their models in diffusers' layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.models.files.transformers import transformer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

CLIP_END = 49407  # the token that ends a prompt

_NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_PNDM: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    **_NOISE,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
_EULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    **_NOISE,
    "interpolation_type": "linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "use_karras_sigmas": False,
}


@dataclass(frozen=True)
class TextFamily:
    """One text encoder: its width, what shapes do not say of it, and what its prompts are filled up with."""

    width: int
    pad_token_id: int
    config: Mapping[str, Any]
    layers: int  # that are used; OpenCLIP's files may have one more


@dataclass(frozen=True)
class Family:
    """A family of checkpoints, by the widths of the text and of the vector that its UNet reads beside the timestep."""

    name: str
    context: int  # width of a row of text
    vector: int | None  # width of the input of `label_emb`
    native: int  # pixels of a side
    texts: Mapping[str, TextFamily]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    heads: int | None = None  # of every level's attention; None: one for each 64 channels
    v_native: int | None = None  # pixels of a side of the members that predict v

    def heads_of(self, width: int) -> int:
        """Return the heads of the attention of a level that is `width` channels wide."""
        return self.heads or width // 64

    @property
    def is_xl(self) -> bool:
        """Whether it has SDXL's second text encoder and its size conditioning."""
        return self.vector is not None


_CLIP: Mapping[str, Any] = {"model_type": "clip_text_model", "layer_norm_eps": 1e-5, "bos_token_id": 49406}
_CLIP_L = {**_CLIP, "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768}
_OPEN_CLIP_H = {**_CLIP, "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512}
_OPEN_CLIP_G = {**_CLIP, "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280}
_SD_L = TextFamily(768, CLIP_END, _CLIP_L, 12)
_SD_H = TextFamily(1024, 0, _OPEN_CLIP_H, 23)
_XL_G = TextFamily(1280, 0, _OPEN_CLIP_G, 32)
_VAE: Mapping[str, Any] = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "norm_num_groups": 32}
_UNET: Mapping[str, Any] = {"_class_name": "UNet2DConditionModel", "norm_num_groups": 32, "act_fn": "silu"}

FAMILIES: tuple[Family, ...] = (
    Family(
        "Stable Diffusion 1.x",
        context=768,
        vector=None,
        native=512,
        texts={"text_encoder": _SD_L},
        unet=_UNET,
        vae={**_VAE, "scaling_factor": 0.18215},
        scheduler=_PNDM,
        heads=8,
    ),
    Family(
        "Stable Diffusion 2.x",
        context=1024,
        vector=None,
        native=512,
        texts={"text_encoder": _SD_H},
        unet=_UNET,
        vae={**_VAE, "scaling_factor": 0.18215},
        scheduler={**_PNDM, "_class_name": "DDIMScheduler"},
        v_native=768,
    ),
    Family(
        "SDXL",
        context=2048,
        vector=2816,
        native=1024,
        texts={"text_encoder": _SD_L, "text_encoder_2": _XL_G},
        unet={**_UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 256},
        vae={**_VAE, "scaling_factor": 0.13025, "force_upcast": True},
        scheduler=_EULER,
    ),
)

XL_KINDS: Mapping[tuple[Any, ...], str] = {
    (1, 2, 10): "SDXL",
    (1, 2, 4): "SSD-1B",
    (1, 1, 2): "Segmind Vega",
    (1, 2, 5): "KOALA-700M",
    (1, 2, 6): "KOALA-1B",
}
"""Members of SDXL's family by the transformer blocks of each level; 1 where a level has none."""


@dataclass(frozen=True)
class Known:
    """A kind of file that is no model to render with, by names in it: all of `has`, each at a name's beginning."""

    says: str
    has: tuple[str, ...] = ()
    inside: tuple[str, ...] = field(default=())  # any of these, anywhere in a name


WITH_VAE, WITH_TEXT = "give it with --vae and the model with --model", "give it with --text-encoders"
TRANSFORMER = Known("is a transformer")  # which one, its own table tells
KNOWN: tuple[Known, ...] = (
    Known("is a LoRA; give it with --lora and the model with --model",
          inside=(".lora_", "lora_unet_", "lora_te", "lora.down", ".hada_w", ".lokr_w", "lycoris_")),
    Known("is an IP-Adapter, which is no model by itself", ("image_proj.",)),
    Known("is a ControlNet, which is no model by itself", inside=("lora_controlnet",)),
    Known("is a ControlNet, which is no model by itself", ("control_model.",)),
    Known("is a ControlNet, which is no model by itself", ("zero_convs.", "input_hint_block.")),
    Known("is a ControlNet, which is no model by itself", ("controlnet_cond_embedding.",)),
    Known("is a ControlNet, which is no model by itself", ("controlnet_down_blocks.",)),
    Known("is a T2I-Adapter, which is no model by itself", ("adapter.body.",)),
    Known("is a T2I-Adapter, which is no model by itself", ("body.0.", "conv_in.")),
    Known("is a textual inversion; give it with --embedding", ("emb_params",)),
    Known("is a textual inversion; give it with --embedding", ("clip_l", "clip_g")),
    Known("is a textual inversion; give it with --embedding", ("string_to_param",)),
    Known("holds AnimateDiff's motion modules, which are no model by themselves", inside=("motion_modules.",)),
    Known("is Stable Video Diffusion; text-to-picture models work", inside=("time_stack.",)),
    TRANSFORMER,
    Known(f"is a T5 text encoder, which is no model by itself; {WITH_TEXT}", ("encoder.block.",)),
    Known(f"is a text encoder, which is no model by itself; {WITH_TEXT}", ("model.embed_tokens.", "model.layers.0.")),
    Known("is an image encoder, which is no model by itself", ("vision_model.",)),
    Known("is an image encoder, which is no model by itself", ("visual.",)),
    Known("is an upscaler (ESRGAN), which is no diffusion model", inside=("conv_first.", "RDB1.", "model.1.sub.")),
    Known(f"is a VAE; {WITH_VAE}", ("encoder.", "decoder.")),
    Known(f"is a VAE; {WITH_VAE}", ("first_stage_model.",)),
    Known(f"is a text encoder; {WITH_TEXT}", ("text_model.encoder.",)),
    Known(f"is a text encoder; {WITH_TEXT}", ("transformer.resblocks.",)),
)  # fmt: skip
"""What a file without a UNet is, in order: the first that fits is said."""

OTHER_SCHEDULES: Mapping[str, str] = {
    "edm_mean": "Playground v2.5, whose latents and noise levels are its own",
    "edm_std": "Playground v2.5, whose latents and noise levels are its own",
    "edm_vpred.sigma_max": "CosXL, whose noise levels are its own",
    "edm_vpred.sigma_min": "CosXL, whose noise levels are its own",
}
"""Tensors that mark a model of another noise schedule."""
OTHER_INPUTS: Mapping[int, str] = {
    5: "a depth-to-image model",
    7: "an upscaling model",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
"""Models by the input channels of their UNets; a text-to-picture model has 4."""
OTHER_WIDTHS: Mapping[tuple[int, int | None], str] = {
    (1280, 2560): "SDXL's refiner, which finishes pictures of the base model",
    (1024, 2048): "Stable unCLIP, which starts from a picture",
    (1024, 1536): "Stable unCLIP, which starts from a picture",
}
"""Models by the widths of text and vector that are refused by their name."""


def known_kind(names: list[str]) -> str | None:
    """Return what a file with these names of tensors is, in words; None for one that is not known."""
    for kind in KNOWN:
        if kind is TRANSFORMER:
            if (found := transformer_of(names)) is not None:
                return found.says()
            continue
        starts = all(any(name.startswith(start) for name in names) for start in kind.has)
        if starts and (not kind.inside or any(mark in name for name in names for mark in kind.inside)):
            return kind.says
    return None
