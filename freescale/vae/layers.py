"""A VAE's encoder or decoder as a sequence of layers, each of which can compute a region of its output.

`layers_of` returns the modules of diffusers' `AutoencoderKL`, or of `OneFrameVae`, in the order of computation. A layer
says which span of its input a span of its output needs, along one axis, and computes a region from exactly that part
of its input. Zeros are put only around the whole map, where the untiled layer puts them, so that a region is the
untiled result up to rounding. A span is [first, one past the last); a region is one of rows and one of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from freescale.vae.one_frame import RmsNorm

Half = Literal["encoder", "decoder"]
Span = tuple[int, int]
Region = tuple[Span, Span]
Size = tuple[int, int]


def area(region: Region) -> int:
    """Return the number of cells in a region."""
    (top, bottom), (left, right) = region
    return (bottom - top) * (right - left)


class Layer(Protocol):
    """What every layer says of its output, along one axis; most keep the size, the channels and the region."""

    def needs(self, span: Span, length: int) -> Span:
        """Return the span of an input of `length` that `span` of the output is made from."""

    def length(self, length: int) -> int:
        """Return the length of the output for an input of `length`."""

    def channels(self, channels: int) -> int:
        """Return the channels of the output."""


class Pointwise:
    """A layer whose output at a point is made from its input at that point."""

    def needs(self, span: Span, length: int) -> Span:
        """Return the span itself."""
        return span

    def length(self, length: int) -> int:
        """Return the length of the input."""
        return length

    def channels(self, channels: int) -> int:
        """Return the channels of the input."""
        return channels


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution of any kernel and stride, with `before` and `after` zeros along each axis."""

    module: nn.Conv2d
    before: int
    after: int

    def needs(self, span: Span, length: int) -> Span:
        """Return the span that the kernels reach, without the padding."""
        first, end = self._reach(span)
        return max(first, 0), min(end, length)

    def length(self, length: int) -> int:
        """Return the number of positions of the kernel."""
        return (length + self.before + self.after - self._kernel) // self._stride + 1

    def channels(self, channels: int) -> int:
        """Return the module's own."""
        return self.module.out_channels

    def apply(self, x: Tensor, region: Region, size: Size) -> Tensor:
        """Return the output at `region`, from the needed part of an input of `size`."""
        top, bottom, left, right = (
            n for span, length in zip(region, size, strict=True) for n in self._outside(span, length)
        )
        padded = F.pad(x, (left, right, top, bottom)) if any((top, bottom, left, right)) else x
        return F.conv2d(padded, self.module.weight, self.module.bias, stride=self._stride)

    def _reach(self, span: Span) -> Span:
        first = span[0] * self._stride - self.before
        return first, (span[1] - 1) * self._stride - self.before + self._kernel

    def _outside(self, span: Span, length: int) -> tuple[int, int]:
        first, end = self._reach(span)
        return max(-first, 0), max(end - length, 0)

    @property
    def _kernel(self) -> int:
        return self.module.kernel_size[0]

    @property
    def _stride(self) -> int:
        return self.module.stride[0]


class Double(Pointwise):
    """Nearest-neighbour enlargement to twice the size."""

    def needs(self, span: Span, length: int) -> Span:
        """Return every cell that a part of the span copies."""
        return span[0] // 2, (span[1] + 1) // 2

    def length(self, length: int) -> int:
        """Return twice the length."""
        return 2 * length

    def apply(self, x: Tensor, region: Region, size: Size) -> Tensor:
        """Return the output at `region`, which may start and end between the two copies of a cell."""
        (top, bottom), (left, right) = region
        larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return larger[..., top % 2 : top % 2 + bottom - top, left % 2 : left % 2 + right - left]


@dataclass(frozen=True, eq=False)
class Norm(Pointwise):
    """GroupNorm and SiLU; mean and variance are those of the whole map."""

    module: nn.GroupNorm


@dataclass(frozen=True, eq=False)
class PixelNorm(Pointwise):
    """A norm over the channels of each pixel, and SiLU."""

    module: RmsNorm

    def apply(self, x: Tensor, region: Region, size: Size) -> Tensor:
        """Return the output at `region`."""
        return F.silu(self.module(x), inplace=True)


class Fork(Pointwise):
    """The start of a residual branch; its input is kept for the `Join` that follows."""


@dataclass(frozen=True, eq=False)
class Join(Pointwise):
    """The end of a residual branch: the kept input, through `shortcut` if there is one, is added to it."""

    shortcut: nn.Conv2d | None
    scale: float

    def apply(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return the sum of the branch x and the kept input, both at one region."""
        if self.shortcut is not None:
            kept = F.conv2d(kept, self.shortcut.weight, self.shortcut.bias)
        return (kept + x) / self.scale


@dataclass(frozen=True, eq=False)
class Attend(Pointwise):
    """Self-attention over the whole map, a norm before it and a residual after it; it needs its whole input."""

    module: Any

    @property
    def pixel_norm(self) -> RmsNorm | None:
        """The norm before it, where that is one of each pixel; None: GroupNorm."""
        return self.module.group_norm if _is_of_pixels(self.module.group_norm) else None


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of one half; `sizes[i]` and `channels[i]` are those of the input of layer i."""

    layers: tuple[Any, ...]
    sizes: tuple[Size, ...]
    channels: tuple[int, ...]

    def back(self, start: int, stop: int, region: Region) -> list[Region]:
        """Return the region of the input of each of layers start..stop-1 that `region` of the output needs, then it."""
        regions = [region]
        for index in reversed(range(start, stop)):
            (rows, columns), (height, width) = regions[-1], self.sizes[index]
            layer = self.layers[index]
            regions.append((layer.needs(rows, height), layer.needs(columns, width)))
        return regions[::-1]

    def norms(self, start: int, stop: int) -> list[int]:
        """Return the indices of the norms among layers start..stop-1."""
        return [index for index in range(start, stop) if isinstance(self.layers[index], Norm)]


def layers_of(vae: Any, half: Half, size: Size) -> Layers:
    """Return the layers of one half for an input of `size`: pixels of an encoder, latent cells of a decoder.

    Raises `ValueError` for a module that is neither diffusers' `AutoencoderKL` with its standard blocks nor
    `OneFrameVae`.
    """
    layers = tuple(_encoder(vae) if half == "encoder" else _decoder(vae))
    sizes, channels = [size], [layers[0].module.in_channels]
    for layer in layers:
        height, width = sizes[-1]
        sizes.append((layer.length(height), layer.length(width)))
        channels.append(layer.channels(channels[-1]))
    return Layers(layers, tuple(sizes), tuple(channels))


def _encoder(vae: Any) -> Iterator[Any]:
    encoder = vae.encoder
    yield _conv(encoder.conv_in)
    for block in encoder.down_blocks:
        yield from _resnets(block)
        for down in block.downsamplers or ():
            before = down.conv.padding[0]
            yield _conv(down.conv, after=before if down.padding else 1)
    yield from _rest(encoder, ())
    if vae.quant_conv is not None:
        yield _conv(vae.quant_conv)


def _decoder(vae: Any) -> Iterator[Any]:
    if vae.post_quant_conv is not None:
        yield _conv(vae.post_quant_conv)
    yield _conv(vae.decoder.conv_in)
    yield from _rest(vae.decoder, vae.decoder.up_blocks)


def _rest(half: Any, up_blocks: Any) -> Iterator[Any]:
    """Yield the middle block, the blocks that enlarge, and the last layers."""
    yield from _resnet(half.mid_block.resnets[0])
    for attention, resnet in zip(half.mid_block.attentions, half.mid_block.resnets[1:], strict=True):
        if attention is not None:
            yield _attention(attention)
        yield from _resnet(resnet)
    for block in up_blocks:
        yield from _resnets(block)
        for up in block.upsamplers or ():
            if not up.interpolate:
                raise ValueError("tiling knows nearest-neighbour enlargement, not a transposed convolution")
            yield from (Double(), _conv(up.conv))
    yield from (_norm(half.conv_norm_out, half.conv_act), _conv(half.conv_out))


def _resnets(block: Any) -> Iterator[Any]:
    if getattr(block, "attentions", None):
        raise ValueError(f"tiling knows attention in the middle block only, not {type(block).__name__}")
    for resnet in block.resnets:
        yield from _resnet(resnet)


def _resnet(block: Any) -> Iterator[Any]:
    known = block.upsample is None and block.downsample is None and block.time_emb_proj is None
    if not known or block.time_embedding_norm not in ("default", "group"):
        raise ValueError("tiling knows residual blocks that keep their size and take no embedding")
    yield Fork()
    yield from (_norm(block.norm1, block.nonlinearity), _conv(block.conv1))
    yield from (_norm(block.norm2, block.nonlinearity), _conv(block.conv2))
    yield Join(block.conv_shortcut, float(block.output_scale_factor))


def _attention(module: Any) -> Attend:
    plain = module.group_norm is not None and module.residual_connection and module.spatial_norm is None
    if not plain or module.norm_q is not None or module.norm_k is not None:
        raise ValueError("tiling knows attention with GroupNorm before it and a residual, and no other norm")
    return Attend(module)


def _is_of_pixels(norm: Any) -> bool:
    """Return whether a norm is one of each pixel's channels; a plan imports no class of torch's to ask it."""
    return type(norm).__name__ == "RmsNorm"


def _norm(module: Any, activation: Any) -> Norm | PixelNorm:
    if _is_of_pixels(module) and isinstance(activation, torch.nn.SiLU):
        return PixelNorm(module)
    if not isinstance(module, torch.nn.GroupNorm) or not isinstance(activation, torch.nn.SiLU):
        raise ValueError(f"tiling knows GroupNorm and SiLU, not {type(module).__name__}, {type(activation).__name__}")
    return Norm(module)


def _conv(module: Any, after: int | None = None) -> Conv:
    uniform = len({*module.kernel_size}) == len({*module.stride}) == len({*module.padding}) == 1
    if not uniform or set(module.dilation) != {1} or module.groups != 1 or module.padding_mode != "zeros":
        raise ValueError(f"tiling knows square convolutions of one group, not {module}")
    before = int(module.padding[0])
    return Conv(module, before, before if after is None else after)
