"""Which family of transformers an adapter was made for, by the names of its modules, else by their shapes.

FLUX.1 and FLUX.2 have one naming and feed-forwards of other widths; Stable Diffusion 3, FLUX.1 and Qwen-Image share the
names of their attention in diffusers, and have other widths.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Shapes = Mapping[str, tuple[int, ...]]  # of a module's tensors, by role

OTHERS = "a transformer model (Flux, Stable Diffusion 3 and others)"
_BLOCK, _DOT = r"blocks[._]\d+[._]", r"[._]"
NAMES: Mapping[str, str] = {
    "FLUX.2": r"to_qkv_mlp_proj|(single|double)_stream_modulation"
    rf"|(?<=former_){_BLOCK}ff(_context)?[._]linear_(in|out)",
    "FLUX.3": r"(content_)?mode_blocks",
    "HunyuanVideo": r"double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)|individual_token_refiner",
    "Qwen-Image": rf"(?<=former_){_BLOCK}(img|txt)_(mlp|mod)|txt_norm",
    "Stable Diffusion 3": r"joint_blocks",
    "Flux": r"double_blocks|single_(?:transformer_)?blocks",
    "Wan or a kin of it": rf"(?<!former[._]){_BLOCK}(self_attn|cross_attn|attn[12])|^transformer\.{_BLOCK}attn[12]",
    "LTX-Video or PixArt": rf"^(transformer|diffusion_model)\.transformer_{_BLOCK}attn[12]",
    "a video model": r"motion_modules",
}
"""By an expression that finds one of a family's modules; the first that fits."""
LAYERS = re.compile(rf"(^|{_DOT})(layers|noise_refiner|context_refiner){_DOT}\d+{_DOT}(attention|feed_forward)")
ATTENTION = re.compile(rf"(?<=former_){_BLOCK}attn[._](to|add)_[qkv]")
LAYER_WIDTHS: Mapping[int, str] = {3840: "Z-Image", 2304: "Lumina 2"}
ATTENTION_WIDTHS: Mapping[int, str] = {1536: "Stable Diffusion 3", 2432: "Stable Diffusion 3"}
WIDER: Mapping[str, int] = {"linear1": 7, "img_mlp.0": 4, "txt_mlp.0": 4, "img_mlp_0": 4, "txt_mlp_0": 4}
"""How many times as high as wide weights of FLUX.1 are; those of FLUX.2 are higher by 2."""
_TENSOR = re.compile(r"(.+)\.lora_(?:(A|down)|B|up)(?:\.\w+)?\.weight")
WHOLE = re.compile(r"^(?:transformer\.|lora_transformer_)")


def transformer_family(modules: Iterable[str], shapes: Callable[[str], Shapes]) -> str | None:
    """Return the family of transformers, or the video models, whose modules a file has; None for none.

    `shapes` gives the shapes of a module's tensors by role.
    """
    names = list(modules)
    family = next((family for family, sign in NAMES.items() if any(re.search(sign, name) for name in names)), None)
    if family == "Flux":
        return "FLUX.2" if any(_is_of_flux2(name, shapes(name)) for name in names) else family
    if family is not None:
        return family
    for pattern, widths, unsaid in (
        (LAYERS, LAYER_WIDTHS, "Z-Image or Lumina 2"),
        (ATTENTION, ATTENTION_WIDTHS, OTHERS),
    ):
        if found := [name for name in names if pattern.search(name) and not name.endswith(("w2", "feed_forward_w2"))]:
            known = (widths.get(sides[1]) for name in found if (sides := sides_of(shapes(name))) is not None)
            return next((each for each in known if each is not None), unsaid)
    return OTHERS if any(WHOLE.search(name) for name in names) else None


def family_of_tensors(tensors: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the family of transformers that a LoRA was made for, by the shapes of its tensors; None for none."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        if match := _TENSOR.fullmatch(name):
            modules.setdefault(match[1], {})["lora_down" if match[2] else "lora_up"] = shape
    return transformer_family(modules, modules.__getitem__)


def _is_of_flux2(name: str, shapes: Shapes) -> bool:
    times = next((times for end, times in WIDER.items() if name.endswith(end)), None)
    sides = sides_of(shapes)
    return times is not None and sides is not None and sides[0] == (times + 2) * sides[1]


def sides_of(shapes: Shapes) -> tuple[int, int] | None:
    """Return (rows, columns) of the weight that a module's tensors change, where two of them say it."""
    if len(whole := shapes.get("diff", ())) > 1:
        return whole[0], whole[1]
    up, down = shapes.get("lora_up", ()), shapes.get("lora_down", ())
    return (up[0], down[1]) if len(up) > 1 and len(down) > 1 else None
