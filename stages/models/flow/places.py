"""Where the networks of a family of transformers lie in a file, by the names of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import SpecError
from stages.models.files.places import ELSEWHERE, Location, text_place, vae_place, wan_vae_place
from stages.models.files.record import NetworkFile
from stages.models.files.transformer_names import LAYOUTS, NAMES
from stages.models.files.transformers import transformer_of, works

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stages.models.files.record import FileHeader
    from stages.models.weights import Part

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
DIFFUSERS_PREFIXES = ("", "transformer.", *PREFIXES[:2])
DIFFUSERS = (  # the first tensors
    *("transformer_blocks.0.attn.to_q.weight", "layers.0.attention.to_q.weight"),
    "blocks.0.attn1.to_q.weight",
)
EMBEDDERS = ("img_in.weight", "x_embedder.weight")
OTHER_INPUTS = {384: "FLUX.1 Fill, an inpainting model", 128: "FLUX.1 Canny or Depth, which reads a picture"}
_IN_COMFYUI = "text_encoders.{}.transformer."
T5_PREFIXES = (_IN_COMFYUI.format("t5xxl"), "transformer.", "")
UMT5_PREFIXES = (_IN_COMFYUI.format("umt5xxl"), "transformer.", "")
T5_FIRST = "encoder.block.0.layer.0.SelfAttention.q.weight"
QWEN3_PREFIXES = (*(f"{_IN_COMFYUI.format(name)}model." for name in ("qwen3_4b", "qwen3_8b")), "model.", "")
QWEN3_FIRST = "layers.0.self_attn.q_norm.weight"
QWEN_PREFIXES = (_IN_COMFYUI.format("qwen25_7b"), "")
QWEN_FIRST = {"early_qwen": "visual.patch_embed.proj.weight", "diffusers": "model.visual.patch_embed.proj.weight"}
BESIDE: Mapping[str, tuple[str, ...]] = {
    "vae": ELSEWHERE["vae"],
    "text_encoder": ("text_encoders.clip_l.",),
    "text_encoder_2": ("text_encoders.clip_g.",),
    "t5": ("text_encoders.t5xxl.",),
    "umt5": ("text_encoders.umt5xxl.",),
    "qwen3": ("text_encoders.qwen3_",),
    "qwen2_5_vl": ("text_encoders.qwen25_",),
}
"""What the names of a part begin with in the file of a transformer."""


def transformer_file(header: FileHeader, part: Part) -> NetworkFile:
    """Return the transformer in a file. Raises `SpecError` for a file of another family, by its name."""
    kind = transformer_of(header.tensors)
    if kind is None or kind.network != part.kind:
        is_read = kind is not None and kind.network is not None
        says = "holds no transformer" if kind is None else f"is {kind.name}" if is_read else kind.says()
        other = f"; a file of {works()} works" if kind is None else ""
        other = f", and {part.folder} is of a {part.kind}; a folder of the same model works" if is_read else other
        raise SpecError(f"model: {header.path} {says}{other}")
    width = next((each.shape[-1] for n, each in header.tensors.items() if n.endswith(EMBEDDERS) and each.shape), 0)
    if kind.name == "FLUX.1" and width in OTHER_INPUTS and width != part.config.get("in_channels"):
        raise SpecError(f"model: {header.path} is {OTHER_INPUTS[width]}; FLUX.1 [dev], [schnell] or Krea works")
    firsts: list[tuple[str, str, tuple[str, ...]]] = [("diffusers", each, DIFFUSERS_PREFIXES) for each in DIFFUSERS]
    if (layout := LAYOUTS.get(part.kind)) is not None:
        firsts.insert(0, (layout, NAMES[layout].first, PREFIXES))
    for layout, first, prefixes in firsts:
        for prefix in prefixes:
            if prefix + first in header.tensors:
                return NetworkFile(header.path, part.kind, layout, prefix, part.config)  # type: ignore[arg-type]
    names = " and ".join(first for _, first, _ in firsts)
    raise SpecError(f"model: {header.path} is {kind.name} with none of {names}; download it again")


def part_file(headers: Iterable[FileHeader], name: str, part: Part) -> NetworkFile | None:
    """Return the text encoder or VAE of a part in files, None for none. Raises `SpecError` where two hold one."""
    found = [(header, location) for header in headers if (location := _place(header, name, part)) is not None]
    if len(found) > 1:
        both = " and ".join(header.path.name for header, _ in found[:2])
        raise SpecError(
            f"text_encoders: {found[0][0].path.parent} has {both}, which are both a {part.kind}; a folder with one of "
            "them works"
        )
    for header, location in found:
        return NetworkFile(header.path, part.kind, location.layout, location.prefix, part.config)
    return None


def elsewhere(networks: Mapping[str, NetworkFile]) -> tuple[str, ...]:
    """Return what the names of tensors begin with that a file has and that are not taken from it."""
    if "unet" not in networks:
        return ()
    return tuple(prefix for part, prefixes in BESIDE.items() if part not in networks for prefix in prefixes)


def _place(header: FileHeader, name: str, part: Part) -> Location | None:
    width = int(part.config.get("hidden_size", 512))
    match part.kind:
        case "AutoencoderKL" | "AutoencoderKLFlux2":
            found = vae_place(header)
            has_statistics = found is not None and f"{found.prefix}bn.running_mean" in header.tensors
            return found if has_statistics == (part.kind == "AutoencoderKLFlux2") else None
        case "AutoencoderKLQwenImage" | "AutoencoderKLWan":
            return wan_vae_place(header)
        case "CLIPTextModel":
            return text_place(header, "text_encoder", width)
        case "CLIPTextModelWithProjection":
            found = text_place(header, "clip_l" if name == "text_encoder" else "text_encoder_2", width)
            if found is None or name != "text_encoder" or found.layout != "clip":
                return found
            return Location(found.prefix, "unprojected_clip")
        case "T5EncoderModel":
            return _under(header, T5_PREFIXES, {"diffusers": T5_FIRST})
        case "UMT5EncoderModel":
            return _under(header, UMT5_PREFIXES, {"diffusers": T5_FIRST})
        case "Qwen3Model":
            return _under(header, QWEN3_PREFIXES, {"diffusers": QWEN3_FIRST})
        case "Qwen2_5_VLForConditionalGeneration":
            found = _under(header, QWEN_PREFIXES, QWEN_FIRST)
            if found is None or found.layout == "diffusers" or f"{found.prefix}lm_head.weight" in header.tensors:
                return found
            return Location(found.prefix, "headless_qwen")
    return None


def _under(header: FileHeader, prefixes: Iterable[str], firsts: Mapping[str, str]) -> Location | None:
    for prefix in prefixes:
        for layout, first in firsts.items():
            if prefix + first in header.tensors:
                return Location(prefix, layout)  # type: ignore[arg-type]
    return None
