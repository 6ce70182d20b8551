"""Where each network lies in a file, and how it is written there, by the names of tensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stages.errors import SpecError
from stages.models.files.families import known_kind
from stages.models.files.transformers import works

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.files.record import FileHeader, Written

FIRST_UNET, FIRST_DIFFUSERS = "input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"
UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")  # with original names
DIFFUSERS_PREFIXES = ("", "unet.")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
TEXT_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": (
        "conditioner.embedders.0.transformer.text_model.",
        "cond_stage_model.transformer.text_model.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_l.transformer.text_model.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.1.transformer.",
        "text_encoders.clip_g.transformer.",
    ),
    "clip_l": ("text_encoders.clip_l.transformer.",),  # of Stable Diffusion 3, whose class can project
}
BARE = {
    "text_encoder": ("text_model.", "", "transformer.text_model."),
    **dict.fromkeys(("text_encoder_2", "clip_l"), ("", "transformer.")),
}
"""Of text encoders that are alone in a file: which one it is, its width tells."""
ELSEWHERE = {
    "vae": ("first_stage_model.", "vae."),
    "text": ("cond_stage_model.", "conditioner.embedders.", "text_model.", "text_encoder"),
}
"""What the names of a checkpoint's parts begin with, where these parts come from other files."""


class Location(NamedTuple):
    """Where a network lies in a file, and how it is written there."""

    prefix: str
    layout: Written


def shapes_under(header: FileHeader, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors under a prefix, by their names without it."""
    return {name[len(prefix) :]: each.shape for name, each in header.tensors.items() if name.startswith(prefix)}


def unet_place(header: FileHeader) -> Location:
    """Return where the UNet is. Raises `SpecError` that names what a file without one is."""
    names = header.tensors
    if not is_control(names):
        for prefix in UNET_PREFIXES:
            if prefix + FIRST_UNET in names:
                return Location(prefix, "unet")
        for prefix in DIFFUSERS_PREFIXES:
            if prefix + FIRST_DIFFUSERS in names and prefix + "conv_in.weight" in names:
                return Location(prefix, "diffusers")
    says = known_kind(list(names)) or (
        f"holds no UNet that is known ({len(names)} tensors, such as {next(iter(names), 'none')}); "
        f"a file of {works()} works"
    )
    raise SpecError(f"model: {header.path} {says}")


def has_unet(header: FileHeader) -> bool:
    """Return whether a file holds a UNet."""
    return any(prefix + FIRST_UNET in header.tensors for prefix in UNET_PREFIXES)


def is_control(names: Mapping[str, object]) -> bool:
    """Return whether a file is a ControlNet, whose names are a UNet's and some of its own."""
    marks = ("controlnet_", "control_model.", "input_hint_block.", "zero_convs.")
    return any(name.startswith(marks) for name in names)


def vae_place(header: FileHeader) -> Location | None:
    """Return where the VAE is; None where there is none."""
    for prefix in VAE_PREFIXES:
        if prefix + "decoder.conv_in.weight" in header.tensors:
            names = shapes_under(header, prefix)
            if not any(name.startswith("encoder.down_blocks.") for name in names):
                return Location(prefix, "nested_vae" if "decoder.post_quant_conv.weight" in names else "vae")
            is_old = any(name.endswith(".query.weight") for name in names)
            return Location(prefix, "old_diffusers" if is_old else "diffusers")
    return None


def wan_vae_place(header: FileHeader) -> Location | None:
    """Return where the VAE of Qwen-Image or Wan is, in the names of Wan or of diffusers; None where there is none."""
    for prefix in VAE_PREFIXES:
        if prefix + "decoder.middle.0.residual.0.gamma" in header.tensors:
            return Location(prefix, "wan_vae")
        if prefix + "decoder.mid_block.resnets.0.norm1.gamma" in header.tensors:
            return Location(prefix, "diffusers")
    return None


def text_place(header: FileHeader, part: str, width: int) -> Location | None:
    """Return where a text encoder is that has rows of this `width`; None where there is none."""
    for prefix in (*TEXT_PREFIXES[part], *BARE[part]):
        within = "" if part == "text_encoder" else "text_model."
        marks = {"clip": f"{within}embeddings.token_embedding.weight", "open_clip": "token_embedding.weight"}
        for layout, mark in marks.items():
            found = header.tensors.get(prefix + mark)
            if found is not None and found.shape[1:] == (width,):
                return Location(prefix, layout)  # type: ignore[arg-type]
    return None
