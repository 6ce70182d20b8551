"""Names of FLUX.1 and Chroma in diffusers -> names in the files of Black Forest Labs. Pure: no file is opened.

A tensor of such a file may hold several of diffusers', one below the other: queries, keys and values of one stream, and
in a single block the first layer of its feed-forward with them. The modulation of the last layer has its two halves in
the other order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Rows = tuple[tuple[int, int], ...]  # (first, end) of rows of an original tensor, in the order of diffusers
Pieces = tuple[tuple[str, int, int], ...]  # (module of diffusers, first, end) of its rows, in the order of the original

_OUTER = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
    "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_APPROXIMATOR = {"linear_1": "in_layer", "linear_2": "out_layer"}  # Chroma's, a layer of it
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
    **dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1"),
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
_LEAF = re.compile(r"(.+?)(\.weight|\.bias)?")
_PARTS = ("to_q", "to_k", "to_v", "proj_mlp", "add_q_proj", "add_k_proj", "add_v_proj")
_PART = re.compile(rf".*\.({'|'.join(_PARTS)})(\.weight|\.bias)?")
MLP = 4  # the feed-forward of a block is so many times as wide as the block


def flux_name(name: str) -> str:
    """Return the original name of a tensor or module that is called `name` in diffusers. Raises `KeyError`."""
    match = _LEAF.fullmatch(name)
    assert match is not None
    module, leaf = match[1], match[2] or ""
    if block := _BLOCK.fullmatch(module):
        single = block[1].startswith("single")
        table, kind = (_SINGLE, "single_blocks") if single else (_DOUBLE, "double_blocks")
        return f"{kind}.{block[2]}.{table[block[3]]}{_scale(table[block[3]], leaf)}"
    if layer := re.fullmatch(r"(distilled_guidance_layer)\.(layers|norms)\.(\d+)(?:\.(\w+))?", module):
        start = f"{layer[1]}.{layer[2]}.{layer[3]}"
        return start + _scale("norm", leaf) if layer[2] == "norms" else f"{start}.{_APPROXIMATOR[layer[4]]}{leaf}"
    return _OUTER[module] + leaf


def _scale(module: str, leaf: str) -> str:
    """Return what the weight of a module is called: of a norm, its scale."""
    return ".scale" if leaf == ".weight" and "norm" in module else leaf


def flux_order(name: str) -> int:
    """Return the number of a tensor or module among those that one original tensor holds, from its first row on."""
    match = _PART.fullmatch(name)
    return _PARTS.index(match[1]) if match else 0


def flux_rows(name: str, total: int) -> Rows | None:
    """Return which rows of its original tensor, of `total` rows, a tensor or module is. None: all, as they are.

    Raises `ValueError` where so many rows cannot be shared out.
    """
    if name.startswith("norm_out.linear"):
        half = _share(total, 2)
        return ((half, total), (0, half))
    match = _PART.fullmatch(name)
    if match is None:
        return None
    is_single = name.startswith("single_transformer_blocks.")
    width, number = _share(total, 3 + MLP if is_single else 3), flux_order(name)
    if match[1] == "proj_mlp":
        return ((3 * width, total),)
    return (((number % 4) * width, (number % 4 + 1) * width),)


def _share(total: int, parts: int) -> int:
    if total % parts:
        raise ValueError(f"{total} rows are no {parts} equal parts")
    return total // parts


def fused(names: Mapping[str, int]) -> dict[str, Pieces]:
    """Return the pieces of each original module that is not one of diffusers' as it is.

    `names` are modules of diffusers with the number of their rows.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(flux_name(name), []).append(name)
    pieces: dict[str, Pieces] = {}
    for original, modules in found.items():
        if modules == ["norm_out.linear"]:
            half = names[modules[0]] // 2
            pieces[original] = ((modules[0], half, 2 * half), (modules[0], 0, half))
        elif len(modules) > 1:
            pieces[original] = tuple((name, 0, names[name]) for name in sorted(modules, key=flux_order))
    return pieces
