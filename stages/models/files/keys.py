"""Names in diffusers and transformers -> names in checkpoints of the original layout. Pure: no file is opened.

A *layout* is how one network is written in such a file: `unet` and `vae` in the names of latent diffusion, those of
`transformer_names` in the names of a transformer's authors, CLIP's text encoders in those of transformers or, as
`open_clip`, in those of OpenCLIP.
Names have no prefix of the file (`model.diffusion_model.`) here; those of text encoders have `text_model.` on the side
of transformers, as its files have it. Every function takes the names of tensors and of modules alike.

The other direction needs no second map: all names of a network are known, so `diffusers_names` turns the map around.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from stages.models.weights import QWEN_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

Layout = Literal[
    "unet",
    "vae",
    "nested_vae",  # with the outermost convolutions under encoder and decoder
    "wan_vae",
    "clip",
    "unprojected_clip",  # without a projection, which is the identity then
    "open_clip",
    "early_qwen",
    "headless_qwen",  # without the layer that writes text
    "flux",
    "flux2",
    "sd3",
    "z_image",
    "wan",
]
TRANSFORMERS = ("flux", "flux2", "sd3", "z_image")  # layouts with a table in `transformer_names`

_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_OUTER = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_OUTER = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_THIRDS = re.compile(r".*\.self_attn\.([qkv])_proj(\..*)?")


def original_name(layout: Layout, config: Mapping[str, Any], name: str) -> str:
    """Return the original name of a tensor or module that is called `name` in diffusers or transformers.

    `config` is the configuration of the network; a UNet's gives `layers_per_block` and `up_block_types`, a VAE's
    `block_out_channels`, and others are not looked at. Raises `KeyError` for a name that has no counterpart.
    """
    try:
        match layout:
            case "unet":
                return _unet(config, name)
            case "vae":
                return _vae(config, name)
            case "nested_vae":
                side = {"quant_conv": "encoder.", "post_quant_conv": "decoder."}.get(name.partition(".")[0], "")
                return side + _vae(config, name)
            case "wan_vae":
                from stages.models.files.wan_vae_keys import wan_vae_name  # here, since other models need none of it

                return wan_vae_name(config, name)
            case "clip" | "unprojected_clip":
                return name
            case "early_qwen" | "headless_qwen":
                return name.replace(QWEN_TEXT, "model.", 1).replace("model.visual.", "visual.", 1)
            case "open_clip":
                return _open_clip(name)
            case _:
                from stages.models.files.transformer_keys import transformer_name

                return transformer_name(layout, name)
    except KeyError:
        raise KeyError(name) from None


def diffusers_names(layout: Layout, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each original name, the names in diffusers or transformers that it stands for.

    `names` are all of a network's, of its tensors or of its modules. OpenCLIP holds q, k and v in one tensor, so that
    its name stands for three, in this order; transformers do so, too, and FLUX.1 has a fourth in its single blocks.
    Raises `KeyError` as `original_name` does.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        original = original_name(layout, config, name)
        found[original] = (*found.get(original, ()), name)
    return {original: tuple(sorted(each, key=_order(layout))) for original, each in found.items()}


def _order(layout: Layout) -> Callable[[str], int]:
    if layout not in TRANSFORMERS:
        return _third
    from stages.models.files.transformer_keys import transformer_order

    return transformer_order


def unpacked(layout: Layout, config: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """Return the tensor `name` of diffusers or transformers from the original one that holds it.

    A third of OpenCLIP's q, k and v, or a transformer's rows, as a view; OpenCLIP's projection transposed; a VAE's
    attention as matrices (O, I) where the file has kernels of one tap (O, I, 1, 1).
    """
    if layout in TRANSFORMERS:
        from stages.models.files.transformer_keys import transformer_rows

        rows = transformer_rows(layout, config, name, tensor.shape[0])
        if rows is None:
            return tensor
        (first, end), *rest = rows
        return tensor.roll(end - first, 0) if rest else tensor[first:end]
    if layout == "open_clip":
        if _THIRDS.fullmatch(name):
            return tensor.tensor_split(3)[_third(name)]
        return tensor.T.contiguous() if name == "text_projection.weight" else tensor
    is_matrix = layout in ("vae", "nested_vae") and ".attentions." in name and tensor.ndim == 4
    return tensor.flatten(1) if is_matrix else tensor


def unpacked_shape(layout: Layout, config: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what `unpacked` returns for a tensor of `shape`; as it is for one of no equal parts."""
    if layout in TRANSFORMERS:
        from stages.models.files.transformer_keys import transformer_rows

        try:
            rows = transformer_rows(layout, config, name, shape[0]) if shape else None
        except ValueError:
            return shape
        return shape if rows is None else (sum(end - first for first, end in rows), *shape[1:])
    if layout == "open_clip":
        if _THIRDS.fullmatch(name) and shape and shape[0] % 3 == 0:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if name == "text_projection.weight" else shape
    is_matrix = layout in ("vae", "nested_vae") and ".attentions." in name and len(shape) == 4 and shape[2:] == (1, 1)
    return shape[:2] if is_matrix else shape


def _unet(config: Mapping[str, Any], name: str) -> str:
    """Blocks of the original are numbered through all levels: the layers of a level, then its down- or upsampler."""
    layers = int(config.get("layers_per_block", 2))
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(\..*)?", name):
        location = 1 + int(match[1]) * (layers + 1) + int(match[3])
        return _layer(f"input_blocks.{location}", match[2], match[4] or "")
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(\..*)?", name):
        location = int(match[1]) * (layers + 1) + int(match[3])
        return _layer(f"output_blocks.{location}", match[2], match[4] or "")
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(\..*)?", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op{match[2] or ''}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv(\..*)?", name):
        behind = 2 if "CrossAttn" in config["up_block_types"][int(match[1])] else 1
        return f"output_blocks.{int(match[1]) * (layers + 1) + layers}.{behind}.conv{match[2] or ''}"
    outer, inside = _split(_UNET_OUTER, name)
    return f"{outer}.{_renamed(_UNET_RESNET, inside)}" if ".resnets." in name and inside else outer + inside


def _layer(location: str, kind: str, inside: str) -> str:
    if kind == "attentions":
        return f"{location}.1{inside}"
    return f"{location}.0.{_renamed(_UNET_RESNET, inside)}" if inside else f"{location}.0"


def _vae(config: Mapping[str, Any], name: str) -> str:
    """The original decoder counts its levels from the other end."""
    pattern = r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)(\..*)?"
    if match := re.fullmatch(pattern, name):
        side, level, kind, number, inside = match[1], int(match[2]), match[3], match[4], match[5] or ""
        location = f"{side}.{level if side == 'encoder.down' else len(config['block_out_channels']) - 1 - level}"
        if kind == "resnets":
            return f"{location}.block.{number}{inside.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{location}.{kind.removesuffix('rs')}{inside}"
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv", "bn") or rest.partition(".")[0] in ("conv_in", "conv_out"):
        return name
    outer, inside = _split(_VAE_OUTER, rest)
    if outer == "mid.attn_1" and inside:
        return f"{side}.{outer}.{_renamed(_VAE_ATTENTION, inside)}"
    return f"{side}.{outer}{inside}"


def _open_clip(name: str) -> str:
    if name in ("text_projection", "text_projection.weight"):
        return "text_projection"
    inner = name.removeprefix("text_model.")
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", inner):
        location = f"transformer.resblocks.{match[1]}"
        if third := _THIRDS.fullmatch(inner):
            return f"{location}.attn.in_proj{(third[2] or '').replace('.', '_')}"
        return f"{location}.{_renamed(_OPEN_CLIP_LAYER, match[2])}"
    outer, inside = _split(_OPEN_CLIP_OUTER, inner)
    return outer + inside


def _third(name: str) -> int:
    match = _THIRDS.fullmatch(name)
    return "qkv".index(match[1]) if match else 0


def _split(table: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return what the beginning of a name is called by a table, and the rest of the name, with its dot."""
    for known, original in table.items():
        if name == known or name.startswith(f"{known}."):
            return original, name[len(known) :]
    raise KeyError(name)


def _renamed(table: Mapping[str, str], inside: str) -> str:
    outer, rest = _split(table, inside.removeprefix("."))
    return outer + rest
