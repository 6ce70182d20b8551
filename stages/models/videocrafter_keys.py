"""Names in VideoCrafter2's checkpoint -> names in diffusers and transformers. Pure: no tensor is looked at.

The file has three parts, by prefix: the UNet (LVDM), the VAE (Stable Diffusion's own code), the text tower (OpenCLIP).
The networks here have the same layers, so names are all there is to change, but for kernels of one tap that are linear
layers here (`convert_videocrafter2`). `None` is a name that is not known.
"""

from __future__ import annotations

import re

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.model."}
"""Where each part of a diffusers folder lies in the file."""

DROPPED = re.compile(
    r"betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    r"|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_\w+|scale_arr"
    r"|first_stage_model\.loss\..*"
    r"|cond_stage_model\.model\.(transformer\.resblocks\.23\..*|text_projection|logit_scale|attn_mask)"
)
"""Tables that a schedule makes again, a training loss, and what lies behind the last text layer that is used."""

_RES = {
    "in_layers.0": "resnets.{}.norm1",
    "in_layers.2": "resnets.{}.conv1",
    "emb_layers.1": "resnets.{}.time_emb_proj",
    "out_layers.0": "resnets.{}.norm2",
    "out_layers.3": "resnets.{}.conv2",
    "skip_connection": "resnets.{}.conv_shortcut",
}
_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "fps_embedding.0": "time_embedding.fps_embedding.linear_1",
    "fps_embedding.2": "time_embedding.fps_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_name(key: str) -> str | None:
    """The UNet's name of a tensor, without the prefix: `input_blocks.4.1.norm.weight` -> `down_blocks.1.attentions.0…`.

    Blocks are numbered through all four levels, three to a level: two layers and a downsampler, or three layers.
    """
    stem, _, leaf = key.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{leaf}"
    if inside := _after(key, "init_attn.0."):
        return f"transformer_in.{inside}"
    if match := re.fullmatch(r"middle_block\.([0-3])\.(.+)", key):
        part, inside = int(match[1]), match[2]
        return _layer("mid_block", {0: 0, 1: 0, 2: 0, 3: 1}[part], {1: 1, 2: 2}.get(part, 0), inside)
    if match := re.fullmatch(r"input_blocks\.(\d+)\.([0-2])\.(.+)", key):
        level, position = divmod(int(match[1]) - 1, 3)
        if position == 2:
            inside = _after(match[3], "op.") or ""
            return f"down_blocks.{level}.downsamplers.0.conv.{inside}" if inside and match[2] == "0" else None
        return _layer(f"down_blocks.{level}", position, int(match[2]), match[3])
    if match := re.fullmatch(r"output_blocks\.(\d+)\.([0-3])\.(.+)", key):
        level, position = divmod(int(match[1]), 3)
        if inside := _after(match[3], "conv."):  # behind what the block has: 1 without attention, 3 with
            return f"up_blocks.{level}.upsamplers.0.conv.{inside}"
        return _layer(f"up_blocks.{level}", position, int(match[2]), match[3])
    return None


def _layer(block: str, position: int, kind: int, inside: str) -> str | None:
    """Return the name of a tensor of a residual block (kind 0), a spatial transformer (1) or a temporal one (2)."""
    if kind:
        return f"{block}.{('attentions', 'temp_attentions')[kind - 1]}.{position}.{inside}"
    if over_time := _after(inside, "temopral_conv."):  # spelt so in the file
        return f"{block}.temp_convs.{position}.{over_time}"
    stem, _, leaf = inside.rpartition(".")
    return f"{block}.{_RES[stem].format(position)}.{leaf}" if stem in _RES else None


_VAE_MID = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_name(key: str) -> str | None:
    """Return the VAE's name of a tensor, without the prefix; the decoder counts its levels from the other end."""
    if re.fullmatch(r"((encoder|decoder)\.(conv_in|conv_out)|(post_)?quant_conv)\.(weight|bias)", key):
        return key
    if match := re.fullmatch(r"(encoder|decoder)\.norm_out\.(\w+)", key):
        return f"{match[1]}.conv_norm_out.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(\w+)\.(\w+)", key):
        side, part, layer, leaf = match.groups()
        inside = _VAE_ATTENTION.get(layer, layer) if part == "attn_1" else layer
        return f"{side}.mid_block.{_VAE_MID[part]}.{inside}.{leaf}"
    if match := re.fullmatch(
        r"(encoder\.down|decoder\.up)\.([0-3])\.(block\.\d|downsample|upsample)\.(\w+)\.(\w+)", key
    ):
        side, level, part, layer, leaf = match.groups()
        block = f"encoder.down_blocks.{level}" if side == "encoder.down" else f"decoder.up_blocks.{3 - int(level)}"
        if number := _after(part, "block."):
            layer = "conv_shortcut" if layer == "nin_shortcut" else layer
            return f"{block}.resnets.{number}.{layer}.{leaf}"
        return f"{block}.{part}rs.0.conv.{leaf}"
    return None


_TEXT_OUTER = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_TEXT_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def text_names(key: str) -> tuple[str, ...]:
    """The text encoder's names of a tensor, without the prefix; three where it holds q, k and v; none if unknown."""
    if key in _TEXT_OUTER:
        return (_TEXT_OUTER[key],)
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
    if not match:
        return ()
    layer, inside = f"encoder.layers.{match[1]}", match[2]
    if together := re.fullmatch(r"attn\.in_proj_(weight|bias)", inside):
        return tuple(f"{layer}.self_attn.{part}_proj.{together[1]}" for part in "qkv")
    stem, _, leaf = inside.rpartition(".")
    return (f"{layer}.{_TEXT_LAYER[stem]}.{leaf}",) if stem in _TEXT_LAYER else ()


def _after(text: str, prefix: str) -> str | None:
    return text[len(prefix) :] if text.startswith(prefix) else None
