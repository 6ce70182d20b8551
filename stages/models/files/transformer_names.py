"""Names of transformers in diffusers -> names in the files of their authors and of ComfyUI: tables, a family each.

A tensor of such a file may hold several of diffusers', one below the other: queries, keys and values of one stream, and
in a single block of FLUX.1 the first layer of its feed-forward with them. Some modulations have their two halves in the
other order. Wan's files have a tensor for each of diffusers'. What a family has no other name for is called there as it
is in diffusers; Qwen-Image has no other names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MLP = 4  # the feed-forward of a block of FLUX.1 is so many times as wide as the block
_BLOCK = re.compile(r"(\D+)\.(\d+)(?:\.(.+))?")
_SWAPPED = "norm_out.linear"


@dataclass(frozen=True)
class Names:
    """How the files of one family call the modules of diffusers' network."""

    first: str  # a tensor that is in every file with these names
    outer: Mapping[str, str]
    blocks: Mapping[str, tuple[str, Mapping[str, str]]]  # by what stands before the number of a block
    has_scales: bool = False  # the weight of a norm is called its scale
    keeps: bool = False  # a module that no table has keeps its name
    swaps: bool = True  # the last modulation has its halves in the other order
    swaps_last: str = ""  # a module of the last block that has, too
    fuses: bool = True  # queries, keys and values are in one tensor

    def module(self, name: str) -> str:
        """Return what a module or a tensor without an ending is called. Raises `KeyError` for one that is not known."""
        match = _BLOCK.fullmatch(name)
        if match is None or match[1] not in self.blocks:
            return self.outer.get(name, name) if self.keeps else self.outer[name]
        kind, table = self.blocks[match[1]]
        inside = match[3] or ""
        found = table.get(inside, inside) if self.keeps else table[inside]
        return ".".join(part for part in (kind, match[2], found) if part)

    def leaf(self, module: str, leaf: str) -> str:
        """Return the ending of a tensor of the module that is called `module` in the file."""
        return ".scale" if self.has_scales and leaf == ".weight" and "norm" in module else leaf

    def is_swapped(self, module: str, config: Mapping[str, Any]) -> bool:
        """Return whether the halves of the rows of diffusers' `module` are in the other order in the file."""
        last = f"transformer_blocks.{int(config.get('num_layers', 0)) - 1}.{self.swaps_last}"
        return self.swaps and (module == _SWAPPED or (bool(self.swaps_last) and module == last))


def _qkv(names: str, original: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), original)


_FLUX_OUTER = {
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    **_qkv("attn.to_q attn.to_k attn.to_v", "img_attn.qkv"),
    **_qkv("attn.add_q_proj attn.add_k_proj attn.add_v_proj", "txt_attn.qkv"),
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
_FLUX_SINGLE = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}
FLUX = Names(
    first="double_blocks.0.img_attn.qkv.weight",
    outer={
        **_FLUX_OUTER,
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
    },
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_DOUBLE,
                "norm1.linear": "img_mod.lin",
                "norm1_context.linear": "txt_mod.lin",
                "ff.net.0.proj": "img_mlp.0",
                "ff.net.2": "img_mlp.2",
                "ff_context.net.0.proj": "txt_mlp.0",
                "ff_context.net.2": "txt_mlp.2",
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                **_FLUX_SINGLE,
                **_qkv("attn.to_q attn.to_k attn.to_v proj_mlp", "linear1"),
                "norm.linear": "modulation.lin",
                "proj_out": "linear2",
            },
        ),
        "distilled_guidance_layer.layers": (
            "distilled_guidance_layer.layers",
            {"linear_1": "in_layer", "linear_2": "out_layer"},
        ),
        "distilled_guidance_layer.norms": ("distilled_guidance_layer.norms", {"": ""}),
    },
    has_scales=True,
)
"""FLUX.1, and Chroma with its approximator."""
FLUX2 = Names(
    first=FLUX.first,
    outer={
        **_FLUX_OUTER,
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    },
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_DOUBLE,
                "ff.linear_in": "img_mlp.0",
                "ff.linear_out": "img_mlp.2",
                "ff_context.linear_in": "txt_mlp.0",
                "ff_context.linear_out": "txt_mlp.2",
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {**_FLUX_SINGLE, "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
        ),
    },
    has_scales=True,
)
SD3 = Names(
    first="joint_blocks.0.x_block.attn.qkv.weight",
    outer={
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    blocks={
        "transformer_blocks": (
            "joint_blocks",
            {
                **_qkv("attn.to_q attn.to_k attn.to_v", "x_block.attn.qkv"),
                **_qkv("attn.add_q_proj attn.add_k_proj attn.add_v_proj", "context_block.attn.qkv"),
                **_qkv("attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.qkv"),
                "attn.norm_q": "x_block.attn.ln_q",
                "attn.norm_k": "x_block.attn.ln_k",
                "attn.norm_added_q": "context_block.attn.ln_q",
                "attn.norm_added_k": "context_block.attn.ln_k",
                "attn2.norm_q": "x_block.attn2.ln_q",
                "attn2.norm_k": "x_block.attn2.ln_k",
                "attn.to_out.0": "x_block.attn.proj",
                "attn.to_add_out": "context_block.attn.proj",
                "attn2.to_out.0": "x_block.attn2.proj",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
        ),
    },
    swaps_last="norm1_context.linear",  # that block modulates its text as the last layer does, by shift and scale alone
)
_Z_BLOCK = {
    **_qkv("attention.to_q attention.to_k attention.to_v", "attention.qkv"),
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "attention.to_out.0": "attention.out",
}
Z_IMAGE = Names(
    first="layers.0.attention.qkv.weight",
    outer={
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    },
    blocks={name: (name, _Z_BLOCK) for name in ("layers", "noise_refiner", "context_refiner")},
    keeps=True,
    swaps=False,
)
WAN = Names(
    first="blocks.0.self_attn.q.weight",
    outer={
        "patch_embedding": "patch_embedding",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "scale_shift_table": "head.modulation",
        "proj_out": "head.head",
    },
    blocks={
        "blocks": (
            "blocks",
            {
                **{f"attn1.to_{name}": f"self_attn.{name}" for name in "qkv"},
                **{f"attn2.to_{name}": f"cross_attn.{name}" for name in "qkv"},
                "attn1.to_out.0": "self_attn.o",
                "attn2.to_out.0": "cross_attn.o",
                **{f"attn1.norm_{name}": f"self_attn.norm_{name}" for name in "qk"},
                **{f"attn2.norm_{name}": f"cross_attn.norm_{name}" for name in "qk"},
                "norm2": "norm3",
                "ffn.net.0.proj": "ffn.0",
                "ffn.net.2": "ffn.2",
                "scale_shift_table": "modulation",
            },
        ),
    },
    swaps=False,
    fuses=False,
)
NAMES: Mapping[str, Names] = {"flux": FLUX, "flux2": FLUX2, "sd3": SD3, "z_image": Z_IMAGE, "wan": WAN}
"""By layout."""
LAYOUTS: Mapping[str, str] = {
    "FluxTransformer2DModel": "flux",
    "ChromaTransformer2DModel": "flux",
    "Flux2Transformer2DModel": "flux2",
    "SD3Transformer2DModel": "sd3",
    "ZImageTransformer2DModel": "z_image",
    "WanTransformer3DModel": "wan",
}
"""The layout of a class that files have under other names than diffusers'."""
