"""Every way in which files of adapters write a module of a transformer -> that module.

A module of the original layout may be several of diffusers', one below the other: its change is made of their weights
together, and each gets its rows back. In what follows d is a module's path in diffusers, o its path in the original
layout, and `_` joins the parts of a flat name.

    lora_unet_ + o_                                   kohya
    lora_transformer_ + d_                            OneTrainer
    lycoris_ + d_                                     SimpleTuner
    transformer. + d, d, base_model.model. + d        diffusers, PEFT, ai-toolkit
    diffusion_model. + o, o, base_model.model. + o    ComfyUI, Black Forest Labs, fal
    double_blocks.N.processor.qkv_lora1               XLabs, of FLUX.1

A family whose files have no other names than diffusers' has those with d alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stages.models.files.transformer_keys import fused, transformer_name
from stages.models.files.transformer_names import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.files.transformer_keys import Pieces

DOTTED = ("", "transformer.", "base_model.model.", "transformer.base_model.model.", "diffusion_model.")
ORIGINAL_DOTTED = ("", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.")
FLAT, ORIGINAL_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_"), ("lora_unet_", "lycoris_")
XLABS: Mapping[str, tuple[str, int | None]] = {  # of a block's module: its name there, and how many of its pieces
    "img_attn.qkv": ("processor.qkv_lora1", None),
    "txt_attn.qkv": ("processor.qkv_lora2", None),
    "img_attn.proj": ("processor.proj_lora1", None),
    "txt_attn.proj": ("processor.proj_lora2", None),
    "linear1": ("processor.qkv", 3),
    "linear2": ("processor.proj", None),
}
_BLOCK = re.compile(r"((?:double|single)_blocks\.\d+)\.(.+)")


def transformer_spellings(
    kind: str, config: Mapping[str, Any], rows: Mapping[str, int]
) -> Iterator[tuple[str, str, Pieces]]:
    """Yield (spelling, the module it means, pieces): of a module of diffusers by itself, no pieces.

    `kind` and `config` are the class and the configuration of the network, `rows` those of each module's weight by its
    path. A module that is several of diffusers' has its original name.
    """
    layout = LAYOUTS.get(kind)
    together = {} if layout is None else fused(layout, config, rows)
    for path in rows:
        yield from ((before + path, path, ()) for before in DOTTED)
        yield from ((before + path.replace(".", "_"), path, ()) for before in FLAT)
        if layout is not None and (original := transformer_name(layout, path)) not in together:
            yield from ((name, path, ()) for name in _original_spellings(original))
    for original, pieces in together.items():
        yield from ((name, original, pieces) for name in _original_spellings(original))
        for before in ("", "diffusion_model."):
            if (name := _of_xlabs(original)) and original.endswith("linear1"):
                yield before + name[0], original, pieces[: name[1]]


def _original_spellings(original: str) -> Iterator[str]:
    yield from (before + original for before in ORIGINAL_DOTTED)
    yield from (before + original.replace(".", "_") for before in ORIGINAL_FLAT)
    if (name := _of_xlabs(original)) and name[1] is None:
        yield from (before + name[0] for before in ("", "diffusion_model."))


def _of_xlabs(original: str) -> tuple[str, int | None] | None:
    """Return what XLabs calls a module, and how many of its pieces it is there."""
    match = _BLOCK.fullmatch(original)
    if match is None or match[2] not in XLABS:
        return None
    name, count = XLABS[match[2]]
    return f"{match[1]}.{name}", count
