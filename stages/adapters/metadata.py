"""What the header of an adapter's file tells in words: base model, trigger words, scales. Needs no library.

Trainers write their settings beside the tensors: kohya under `ss_…`, others under `modelspec.…` (SAI ModelSpec 1.0.1),
PEFT as JSON. These are hints, except for PEFT's scales, which its tensors do not hold.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PEFT = "lora_adapter_metadata"
SECOND = "transformer_2"  # what diffusers calls the second of two networks
MOST_HEADER = 2**27  # bytes; a longer one is no header
SHOWN_WORDS, COMMON = 5, 0.5  # trigger words at the most; share of the commonest tag's count that others need
FAMILIES = (
    ("SDXL", ("sdxl", "stable-diffusion-xl", "stable diffusion xl", "pony", "illustrious")),
    ("Stable Diffusion 2", ("sd_v2", "sd_2", "stable-diffusion-v2", "sd2")),
    ("Stable Diffusion 3", ("sd3", "stable-diffusion-3")),
    ("Stable Diffusion 1", ("sd_v1", "sd_1.5", "stable-diffusion-v1", "sd1", "sd 1.5")),
    ("FLUX.2", ("flux2", "flux.2", "flux-2", "flux_2")),
    ("Flux", ("flux",)),
    ("Qwen-Image", ("qwen",)),
    ("Z-Image", ("zimage", "z_image", "z-image")),
    ("Wan or a kin of it", ("wan2", "wan_2", "wan-2", "wan21", "wan22")),
    ("HunyuanVideo", ("hunyuan",)),
)
_ABOUT_BASE = ("modelspec.architecture", "ss_base_model_version", "baseModel", "ss_sd_model_name")


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, without reading a tensor; empty where they cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MOST_HEADER else {}
        return {str(name): str(value) for name, value in header.get("__metadata__", {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words that an adapter was trained to answer to: its trigger phrase, else its commonest tags."""
    if phrase := metadata.get("modelspec.trigger_phrase", "").strip():
        return (phrase,)
    counts: dict[str, float] = {}
    for folder in _mapping(metadata.get("ss_tag_frequency")).values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + (count if isinstance(count, int | float) else 0)
    most = max(counts.values(), default=0)
    common = [tag for tag, count in counts.items() if tag and count >= COMMON * most]
    return tuple(sorted(common, key=lambda tag: -counts[tag])[:SHOWN_WORDS])


def family_said(metadata: Mapping[str, str]) -> str | None:
    """Return the family of models that the metadata name as the base, or None."""
    for key in _ABOUT_BASE:
        said = metadata.get(key, "").lower()
        for family, signs in FAMILIES:
            if any(sign in said for sign in signs):
                return family
    return None


def peft_scalings(metadata: Mapping[str, str], part: str, module: str) -> tuple[float, bool] | None:
    """Return (alpha, whether it is divided by the root of the rank) that PEFT gives a module, or None.

    `module` is its path in the part. diffusers puts the name of the part before each entry, `unet`, `transformer` or
    `transformer_2`.
    """
    entries = _mapping(metadata.get(PEFT))
    before: tuple[str, ...] = (f"{part}.", "transformer.") if part == "unet" else (f"{part}.",)
    second = f"{SECOND}."
    if module.startswith(second) and any(name.startswith(second) for name in entries):
        before = (second,)
    if any(name.startswith(("unet.", "transformer.", second, "text_encoder")) for name in entries):
        entries = {name.partition(".")[2]: value for name, value in entries.items() if name.startswith(before)}
    alpha = entries.get("lora_alpha", entries.get("alpha"))
    patterns = entries.get("alpha_pattern")
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return None
    return float(alpha), entries.get("use_rslora") is True


def _mapping(text: str | None) -> dict[str, Any]:
    """The mapping that a text holds as JSON; empty where it holds none."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
