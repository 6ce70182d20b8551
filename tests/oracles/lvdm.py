"""VideoCrafter2 as its own code has it, written out from a state dict: names and shapes, and what is computed.

The UNet (LVDM), the VAE's two halves and OpenCLIP's text tower, as functions of a mapping of tensors by the names in
the checkpoint. Nothing is shared with the package, diffusers or transformers. Videos are (B, C, F, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """The defaults are the release; four levels with attention on the first three, two residual blocks each."""

    channels: int = 320
    mult: tuple[int, ...] = (1, 2, 4, 4)
    head: int = 64
    context: int = 1024
    groups: int = 32
    vae: int = 128
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    text_layers: int = 24
    text_heads: int = 16
    text_mlp: int = 4096
    tokens: int = 49408
    length: int = 77


REAL = Sizes()


# names and shapes


def unet_shapes(s: Sizes = REAL) -> Shapes:
    out: Shapes = {}
    emb = 4 * s.channels

    def pair(name: str, *weight: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = weight, (weight[0],)

    def res(name: str, given: int, made: int) -> None:
        pair(f"{name}.in_layers.0", given)
        pair(f"{name}.in_layers.2", made, given, 3, 3)
        pair(f"{name}.emb_layers.1", made, emb)
        pair(f"{name}.out_layers.0", made)
        pair(f"{name}.out_layers.3", made, made, 3, 3)
        if given != made:
            pair(f"{name}.skip_connection", made, given, 1, 1)
        for n in (1, 2, 3, 4):
            pair(f"{name}.temopral_conv.conv{n}.0", made)
            pair(f"{name}.temopral_conv.conv{n}.{2 if n == 1 else 3}", made, made, 3, 1, 1)

    def transformer(name: str, width: int, inner: int, context: int, kernel: tuple[int, ...] = ()) -> None:
        pair(f"{name}.norm", width)
        pair(f"{name}.proj_in", inner, width, *kernel)
        pair(f"{name}.proj_out", width, inner, *kernel)
        block = f"{name}.transformer_blocks.0"
        for attention, keys in (("attn1", inner), ("attn2", context)):
            out[f"{block}.{attention}.to_q.weight"] = (inner, inner)
            out[f"{block}.{attention}.to_k.weight"] = out[f"{block}.{attention}.to_v.weight"] = (inner, keys)
            pair(f"{block}.{attention}.to_out.0", inner, inner)
        pair(f"{block}.ff.net.0.proj", 8 * inner, inner)
        pair(f"{block}.ff.net.2", inner, 4 * inner)
        for n in (1, 2, 3):
            pair(f"{block}.norm{n}", inner)

    def both(name: str, first: int, width: int) -> None:
        transformer(f"{name}.{first}", width, width, s.context)
        transformer(f"{name}.{first + 1}", width, width, width)

    for branch in ("time_embed", "fps_embedding"):
        pair(f"{branch}.0", emb, s.channels)
        pair(f"{branch}.2", emb, emb)
    pair("input_blocks.0.0", s.channels, 4, 3, 3)
    transformer("init_attn.0", s.channels, 8 * s.head, 8 * s.head, (1,))
    widths, width, n = [s.channels], s.channels, 0
    for level, mult in enumerate(s.mult):
        for _ in range(2):
            n += 1
            res(f"input_blocks.{n}.0", width, mult * s.channels)
            width = mult * s.channels
            if level < 3:
                both(f"input_blocks.{n}", 1, width)
            widths.append(width)
        if level < len(s.mult) - 1:
            n += 1
            pair(f"input_blocks.{n}.0.op", width, width, 3, 3)
            widths.append(width)
    res("middle_block.0", width, width)
    both("middle_block", 1, width)
    res("middle_block.3", width, width)
    n = 0
    for level in reversed(range(len(s.mult))):
        for position in range(3):
            res(f"output_blocks.{n}.0", width + widths.pop(), s.mult[level] * s.channels)
            width = s.mult[level] * s.channels
            if level < 3:
                both(f"output_blocks.{n}", 1, width)
            if level and position == 2:
                pair(f"output_blocks.{n}.{3 if level < 3 else 1}.conv", width, width, 3, 3)
            n += 1
    pair("out.0", width)
    pair("out.2", 4, width, 3, 3)
    return out


def vae_shapes(s: Sizes = REAL) -> Shapes:
    out: Shapes = {}

    def pair(name: str, *weight: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = weight, (weight[0],)

    def res(name: str, given: int, made: int) -> None:
        pair(f"{name}.norm1", given)
        pair(f"{name}.conv1", made, given, 3, 3)
        pair(f"{name}.norm2", made)
        pair(f"{name}.conv2", made, made, 3, 3)
        if given != made:
            pair(f"{name}.nin_shortcut", made, given, 1, 1)

    widths = [m * s.vae for m in s.vae_mult]
    for side, given, made in (("encoder", 3, 8), ("decoder", 4, 3)):
        first, last = (widths[0], widths[-1]) if side == "encoder" else (widths[-1], widths[0])
        pair(f"{side}.conv_in", first, given, 3, 3)
        for part in ("block_1", "block_2"):
            res(f"{side}.mid.{part}", widths[-1], widths[-1])
        pair(f"{side}.mid.attn_1.norm", widths[-1])
        for part in ("q", "k", "v", "proj_out"):
            pair(f"{side}.mid.attn_1.{part}", widths[-1], widths[-1], 1, 1)
        pair(f"{side}.norm_out", last)
        pair(f"{side}.conv_out", made, last, 3, 3)
    width = widths[0]
    for level, made in enumerate(widths):
        for j in range(2):
            res(f"encoder.down.{level}.block.{j}", width, made)
            width = made
        if level < 3:
            pair(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for level in (3, 2, 1, 0):
        for j in range(3):
            res(f"decoder.up.{level}.block.{j}", width, widths[level])
            width = widths[level]
        if level:
            pair(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    pair("quant_conv", 8, 8, 1, 1)
    pair("post_quant_conv", 4, 4, 1, 1)
    return out


def text_shapes(s: Sizes = REAL) -> Shapes:
    width = s.context
    out: Shapes = {
        "token_embedding.weight": (s.tokens, width),
        "positional_embedding": (s.length, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for n in range(s.text_layers):
        layer = f"transformer.resblocks.{n}"
        for name in ("ln_1", "ln_2"):
            out[f"{layer}.{name}.weight"] = out[f"{layer}.{name}.bias"] = (width,)
        out |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
        for name, made, given in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", s.text_mlp, width),
            ("mlp.c_proj", width, s.text_mlp),
        ):
            out |= {f"{layer}.{name}.weight": (made, given), f"{layer}.{name}.bias": (made,)}
    return out


def checkpoint_shapes(s: Sizes = REAL) -> Shapes:
    """All of the file, with the tables of the schedule that are in it too."""
    parts = {"model.diffusion_model.": unet_shapes(s), "first_stage_model.": vae_shapes(s)}
    parts["cond_stage_model.model."] = text_shapes(s)
    shapes = {prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()}
    tables = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_variance")
    return shapes | dict.fromkeys(tables, (1000,)) | {"scale_arr": (1400,)}


# what is computed


def norm(w: Weights, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
    return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride, kernel.shape[-1] // 2)


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    outputs = []
    for q_head, k_head, v_head in zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True):
        scores = q_head @ k_head.transpose(-1, -2) / math.sqrt(q_head.shape[-1])
        scores = scores if mask is None else scores + mask
        outputs.append(torch.softmax(scores, -1) @ v_head)
    return torch.cat(outputs, -1)


def sinusoid(values: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.tensor([math.exp(-math.log(10000.0) * k / half) for k in range(half)], dtype=values.dtype)
    angles = values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def frames_first(x: Tensor) -> Tensor:
    """(B, C, F, h, w) -> (B F, C, h, w)."""
    return x.transpose(1, 2).flatten(0, 1)


def frames_inside(x: Tensor, frames: int) -> Tensor:
    """(B F, C, h, w) -> (B, C, F, h, w)."""
    return x.reshape(-1, frames, *x.shape[1:]).transpose(1, 2)


class UNet:
    """LVDM's forward pass over a mapping of its tensors, names without the prefix."""

    def __init__(self, weights: Weights, sizes: Sizes) -> None:
        self.w, self.s = weights, sizes

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        s, w, frames = self.s, self.w, x.shape[2]

        def branch(name: str, values: Tensor) -> Tensor:
            return linear(w, f"{name}.2", F.silu(linear(w, f"{name}.0", sinusoid(values, s.channels))))

        emb = (branch("time_embed", t) + branch("fps_embedding", fps)).repeat_interleave(frames, 0)
        text = text.repeat_interleave(frames, 0)
        h = conv(w, "input_blocks.0.0", frames_first(x))
        h = self.temporal("init_attn.0", h, frames, 8)
        kept = [h]
        for n in range(1, 12):
            name = f"input_blocks.{n}"
            h = conv(w, f"{name}.0.op", h, 2) if n % 3 == 0 else self.block(name, h, emb, text, frames)
            kept.append(h)
        h = self.res("middle_block.0", h, emb, frames)
        h = self.temporal("middle_block.2", self.spatial("middle_block.1", h, text), frames)
        h = self.res("middle_block.3", h, emb, frames)
        for n in range(12):
            name = f"output_blocks.{n}"
            h = self.block(name, torch.cat([h, kept.pop()], 1), emb, text, frames)
            for up in (f"{name}.1", f"{name}.3"):
                if f"{up}.conv.weight" in w:
                    h = conv(w, f"{up}.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = conv(w, "out.2", F.silu(norm(w, "out.0", h, s.groups, 1e-5)))
        return frames_inside(h, frames)

    def block(self, name: str, h: Tensor, emb: Tensor, text: Tensor, frames: int) -> Tensor:
        h = self.res(f"{name}.0", h, emb, frames)
        if f"{name}.1.norm.weight" in self.w:
            h = self.temporal(f"{name}.2", self.spatial(f"{name}.1", h, text), frames)
        return h

    def res(self, name: str, x: Tensor, emb: Tensor, frames: int) -> Tensor:
        w, groups = self.w, self.s.groups
        h = conv(w, f"{name}.in_layers.2", F.silu(norm(w, f"{name}.in_layers.0", x, groups, 1e-5)))
        h = h + linear(w, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        h = conv(w, f"{name}.out_layers.3", F.silu(norm(w, f"{name}.out_layers.0", h, groups, 1e-5)))
        h = h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)
        video = over_time = frames_inside(h, frames)
        for n in (1, 2, 3, 4):
            stem = f"{name}.temopral_conv.conv{n}"
            over_time = F.silu(norm(w, f"{stem}.0", over_time, groups, 1e-5))
            last = f"{stem}.{2 if n == 1 else 3}"
            over_time = F.conv3d(over_time, w[f"{last}.weight"], w[f"{last}.bias"], padding=(1, 0, 0))
        return frames_first(video + over_time)

    def spatial(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        tokens = norm(self.w, f"{name}.norm", x, self.s.groups, 1e-6).flatten(2).transpose(1, 2)
        tokens = self.transformed(name, tokens, text, tokens.shape[-1] // self.s.head)
        return x + tokens.transpose(1, 2).reshape(x.shape)

    def temporal(self, name: str, x: Tensor, frames: int, heads: int | None = None) -> Tensor:
        video = norm(self.w, f"{name}.norm", frames_inside(x, frames), self.s.groups, 1e-6)
        batch, channels, _, height, width = video.shape
        tokens = video.permute(0, 3, 4, 2, 1).reshape(-1, frames, channels)
        tokens = self.transformed(name, tokens, None, heads or channels // self.s.head)
        back = tokens.reshape(batch, height, width, frames, channels).permute(0, 3, 4, 1, 2)
        return x + back.reshape(x.shape)

    def transformed(self, name: str, tokens: Tensor, text: Tensor | None, heads: int) -> Tensor:
        w, block = self.w, f"{name}.transformer_blocks.0"
        h = linear(w, f"{name}.proj_in", tokens)
        for n, context in ((1, None), (2, text)):
            given = layer_norm(w, f"{block}.norm{n}", h)
            keys = given if context is None else context
            q = linear(w, f"{block}.attn{n}.to_q", given)
            k, v = (linear(w, f"{block}.attn{n}.to_{part}", keys) for part in "kv")
            h = h + linear(w, f"{block}.attn{n}.to_out.0", attend(q, k, v, heads))
        value, gate = linear(w, f"{block}.ff.net.0.proj", layer_norm(w, f"{block}.norm3", h)).chunk(2, -1)
        h = h + linear(w, f"{block}.ff.net.2", value * F.gelu(gate))
        return linear(w, f"{name}.proj_out", h)


def vae_half(w: Weights, side: str, x: Tensor, groups: int) -> Tensor:
    """`encoder`: an image (B, 3, H, W) -> moments (B, 8, h, w). `decoder`: latents -> an image. No scale factor."""

    def res(name: str, given: Tensor) -> Tensor:
        h = conv(w, f"{name}.conv1", F.silu(norm(w, f"{name}.norm1", given, groups, 1e-6)))
        h = conv(w, f"{name}.conv2", F.silu(norm(w, f"{name}.norm2", h, groups, 1e-6)))
        return h + (conv(w, f"{name}.nin_shortcut", given) if f"{name}.nin_shortcut.weight" in w else given)

    def middle(h: Tensor) -> Tensor:
        h, name = res(f"{side}.mid.block_1", h), f"{side}.mid.attn_1"
        tokens = norm(w, f"{name}.norm", h, groups, 1e-6).flatten(2).transpose(1, 2)
        q, k, v = (linear(w, f"{name}.{part}", tokens) for part in "qkv")
        attended = linear(w, f"{name}.proj_out", attend(q, k, v, 1))
        return res(f"{side}.mid.block_2", h + attended.transpose(1, 2).reshape(h.shape))

    x = conv(w, "post_quant_conv", x) if side == "decoder" else x
    h = conv(w, f"{side}.conv_in", x)
    if side == "encoder":
        for level in range(4):
            for j in range(2):
                h = res(f"encoder.down.{level}.block.{j}", h)
            if level < 3:
                name = f"encoder.down.{level}.downsample.conv"
                h = F.conv2d(F.pad(h, (0, 1, 0, 1)), w[f"{name}.weight"], w[f"{name}.bias"], 2)
        h = middle(h)
    else:
        h = middle(h)
        for level in (3, 2, 1, 0):
            for j in range(3):
                h = res(f"decoder.up.{level}.block.{j}", h)
            if level:
                h = conv(w, f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
    h = conv(w, f"{side}.conv_out", F.silu(norm(w, f"{side}.norm_out", h, groups, 1e-6)))
    return conv(w, "quant_conv", h) if side == "encoder" else h


def text_tower(w: Weights, ids: Tensor, sizes: Sizes) -> Tensor:
    """OpenCLIP's text tower up to its last layer but one, then its final norm: (B, L) -> (B, L, width)."""
    h = w["token_embedding.weight"][ids] + w["positional_embedding"]
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, dtype=h.dtype).triu(1)
    for n in range(sizes.text_layers - 1):
        name = f"transformer.resblocks.{n}"
        given = layer_norm(w, f"{name}.ln_1", h)
        q, k, v = (given @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
        h = h + linear(w, f"{name}.attn.out_proj", attend(q, k, v, sizes.text_heads, mask))
        inner = F.gelu(linear(w, f"{name}.mlp.c_fc", layer_norm(w, f"{name}.ln_2", h)))
        h = h + linear(w, f"{name}.mlp.c_proj", inner)
    return layer_norm(w, "ln_final", h)
