"""The VAE of Qwen-Image over one frame, as 2-D layers: what it computes of a picture, and no more.

A causal convolution puts zeros before the first frame, so that of a single frame only the last slice of its kernel
meets anything else, and the layers that mix frames begin with the second one. So this network has the result of the
whole one to rounding, with a third of its weights. Its modules are named as those of `AutoencoderKL`, and
`layers.layers_of` takes them apart for exact tiles: a norm over the channels of a pixel needs no statistics.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_FRAME = ("AutoencoderKLQwenImage",)
"""The classes that `OneFrameVae` is made from."""


class RmsNorm(nn.Module):
    """Every pixel's channels by their root mean square, times a factor a channel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma = _weight(norm.gamma.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, ...) normalised."""
        factors = self.gamma.view(-1, *(1,) * (x.ndim - 2))
        return F.normalize(x, dim=1).mul_(len(self.gamma) ** 0.5 * factors)


class Residual(nn.Module):
    """A residual block that keeps the size."""

    upsample = downsample = time_emb_proj = None
    time_embedding_norm = "default"
    output_scale_factor = 1.0

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.nonlinearity = RmsNorm(block.norm1), RmsNorm(block.norm2), nn.SiLU()
        self.conv1, self.conv2 = _conv(block.conv1), _conv(block.conv2)
        same = isinstance(block.conv_shortcut, nn.Identity)
        self.conv_shortcut = None if same else _conv(block.conv_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, C, h, w)."""
        kept = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = self.conv1(self.nonlinearity(self.norm1(x)))
        output: Tensor = kept + self.conv2(self.nonlinearity(self.norm2(x)))
        return output


class Attention(nn.Module):
    """Self-attention over the whole map, with one head and a residual."""

    heads, rescale_output_factor, residual_connection = 1, 1.0, True
    spatial_norm = norm_q = norm_k = None

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.group_norm = RmsNorm(block.norm)
        weights, biases = block.to_qkv.weight.chunk(3), block.to_qkv.bias.chunk(3)
        self.to_q, self.to_k, self.to_v = map(_linear, weights, biases)
        self.to_out = nn.ModuleList([_linear(block.proj.weight, block.proj.bias)])

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, h, w) with what its pixels attend to added."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))  # one head
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        output: Tensor = self.to_out[0](attended).transpose(1, 2).unflatten(2, x.shape[-2:]) + x
        return output


class Halving(nn.Module):
    """A convolution of stride 2, with zeros after the last row and column."""

    padding = 0

    def __init__(self, resample: Any) -> None:
        super().__init__()
        self.conv = resample.resample[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h / 2, w / 2)."""
        output: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return output


class Doubling(nn.Module):
    """Nearest-neighbour enlargement to twice the size, and a convolution."""

    interpolate = True

    def __init__(self, resample: Any) -> None:
        super().__init__()
        self.conv = resample.resample[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', 2 h, 2 w)."""
        output: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return output


class Blocks(nn.Module):
    """Residual blocks of one size, and the layers that change it afterwards."""

    def __init__(self, resnets: list[Any], downsamplers: list[Any], upsamplers: list[Any]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(map(Residual, resnets))
        self.downsamplers = nn.ModuleList(map(Halving, downsamplers))
        self.upsamplers = nn.ModuleList(map(Doubling, upsamplers))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, h, w) through all layers."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """Residual blocks with attention between them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(map(Residual, block.resnets))
        self.attentions = nn.ModuleList(map(Attention, block.attentions))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, h, w) through all layers."""
        x = self.resnets[0](x)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x))
        return x


class Half(nn.Module):
    """The encoder, whose blocks halve the size before the middle, or the decoder, whose double it afterwards."""

    def __init__(self, half: Any) -> None:
        super().__init__()
        self.conv_in, self.mid_block = _conv(half.conv_in), Middle(half.mid_block)
        self.down_blocks = nn.ModuleList(_halving(getattr(half, "down_blocks", ())))
        ups = getattr(half, "up_blocks", ())
        self.up_blocks = nn.ModuleList(Blocks([*block.resnets], [], [*(block.upsamplers or ())]) for block in ups)
        self.conv_norm_out, self.conv_act = RmsNorm(half.norm_out), nn.SiLU()
        self.conv_out = _conv(half.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, h, w) through all layers."""
        x = self.conv_in(x)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = block(x)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return output


class OneFrameVae(nn.Module):
    """An `AutoencoderKLQwenImage` for pictures (B, 3, H, W) and latents (B, C, h, w)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        widths = [int(vae.config["base_dim"]) * factor for factor in vae.config["dim_mult"]]
        self.config = {**vae.config, "latent_channels": int(vae.config["z_dim"]), "block_out_channels": widths}
        self.encoder, self.decoder = Half(vae.encoder), Half(vae.decoder)
        self.quant_conv, self.post_quant_conv = _conv(vae.quant_conv), _conv(vae.post_quant_conv)

    def decode(self, latents: Tensor) -> Any:
        """Return the picture, not clamped, as `sample`."""
        return SimpleNamespace(sample=self.decoder(self.post_quant_conv(latents)))

    def encode(self, image: Tensor) -> Any:
        """Return mean and std of the posterior, as `latent_dist`."""
        mean, logarithm = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=(0.5 * logarithm.clamp(-30, 20)).exp()))


def _halving(layers: Any) -> list[Blocks]:
    """Return blocks of one size each, of a list of residual blocks with the layers between that halve it."""
    blocks, resnets = list[Blocks](), list[Any]()
    for layer in layers:
        if hasattr(layer, "resample"):
            blocks.append(Blocks(resnets, [layer], []))
            resnets = []
        else:
            resnets.append(layer)
    return [*blocks, Blocks(resnets, [], [])]


def _conv(conv: Any) -> nn.Conv2d:
    """Return the last slice of a causal convolution's kernel as a convolution of one frame."""
    _, _, _, *kernel = conv.weight.shape
    with torch.device("meta"):  # no random numbers
        flat = nn.Conv2d(conv.in_channels, conv.out_channels, (kernel[0], kernel[1]), padding=conv._padding[0])
    flat.weight, flat.bias = _weight(conv.weight[:, :, -1]), _weight(conv.bias)
    return flat


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a convolution of single pixels as a layer of tokens."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = _weight(weight[:, :, 0, 0]), _weight(bias)
    return layer


def _weight(values: Tensor) -> nn.Parameter:
    """Return a parameter of its own, so that the memory of what it is a part of can be freed."""
    return nn.Parameter(values.detach().clone(), requires_grad=False)
