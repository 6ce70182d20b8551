"""Exact tiles of a causal VAE: a tile goes through all of its frames with a cache of its own, then the next one does.

Its norms are of single pixels. So a tile with a margin as wide as what a pixel depends on has the numbers of the whole
map, to rounding. The middle block alone attends over the whole map of a frame, at the size of latents; it works on
latent frames one after another. What one part makes for a later one lies in a file (`TMPDIR`), and memory grows neither
with the video nor with its number of frames.

Videos are (B, 3, F, H, W), latents (B, C, f, h, w) in the VAE's own scale; sides of tiles and margins are latent cells.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freescale.gradients import without_gradients
from freescale.vae.causal import as_patches, as_pixels, cache_of, patch_of
from freescale.vae.plan import VaeMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from freescale.vae.layers import Half, Size, Span

LIVE = 8  # maps of the largest layer that are alive at once, beside the cache
SMALLEST = 8  # latent cells of a tile's side
KEPT = 2  # frames that a convolution keeps


class _Conv(NamedTuple):
    """A causal convolution outside of the middle block."""

    channels: int  # of its input
    scale: int  # pixels a latent cell's side
    frames: int  # of a latent frame


def tile_side(vae: Any, half: Half, size: Size, memory: int | None) -> int | None:
    """Return the side of tiles for latents of `size` within `memory` bytes; None: the whole map fits, or may be taken.

    Raises `VaeMemoryError` where the smallest tile takes more.
    """
    each = cell_bytes(vae, half)
    if not memory or each * size[0] * size[1] <= memory:
        return None
    margin = margin_of(vae, half)
    side = math.isqrt(memory // each) - 2 * margin
    if side < SMALLEST:
        raise VaeMemoryError(memory, SMALLEST * scale_of(vae, half), each * (SMALLEST + 2 * margin) ** 2)
    return side


def cell_bytes(vae: Any, half: Half) -> int:
    """Return about the bytes that half a VAE takes at work for each latent cell, beyond its weights."""
    convs = _convs(vae, half)
    kept = sum(KEPT * conv.channels * conv.scale**2 for conv in convs)
    live = LIVE * max(conv.channels * conv.scale**2 * conv.frames for conv in convs)
    return (kept + live) * int(next(vae.parameters()).itemsize)


def margin_of(vae: Any, half: Half) -> int:
    """Return how many latent cells around it a cell's pixels depend on, outside of the middle block; rounded up."""
    if half == "decoder":
        reach = 1
        for layer in reversed(_layers(vae.decoder.up_blocks)):
            reach = -(-(reach + 1) // 2) if hasattr(layer, "resample") else reach + 2
        return reach
    reach, scale = 0, 1
    for layer in reversed(_layers(vae.encoder.down_blocks)):
        is_halving = hasattr(layer, "resample")
        reach, scale = (2 * reach + 2, 2 * scale) if is_halving else (reach + 2, scale)
    return -(-(reach + 1) // scale)


def _convs(vae: Any, half: Half) -> list[_Conv]:
    found, scale, frames = [], 1, 1
    layers = _layers(vae.decoder.up_blocks) if half == "decoder" else reversed(_layers(vae.encoder.down_blocks))
    for layer in layers:
        if not hasattr(layer, "resample"):
            found += [_Conv(conv.in_channels, scale, frames) for conv in (layer.conv1, layer.conv2)]
            continue
        if hasattr(layer, "time_conv"):
            found.append(_Conv(layer.dim, scale, frames))
            frames *= 2
        scale *= 2
    last = vae.decoder.conv_out if half == "decoder" else vae.encoder.conv_in
    return [*found, _Conv(last.in_channels, scale, frames)]


def _layers(blocks: Iterable[Any]) -> list[Any]:
    """Return residual blocks and what changes their size, in order, of blocks of a half that may hold several."""
    found = []
    for block in blocks:
        if not hasattr(block, "resnets"):
            found.append(block)
            continue
        ends = getattr(block, "upsamplers", None) or (getattr(block, "upsampler", getattr(block, "downsampler", None)),)
        found += [*block.resnets, *(end for end in ends if end is not None)]
    return found


def scale_of(vae: Any, half: Half) -> int:
    """Return the pixels of a latent cell's side."""
    return _convs(vae, half)[-1].scale * patch_of(vae)


def decoded_middle(decoder: Any, part: Tensor, cache: list[Any]) -> Tensor:
    """Return the map of a latent frame after the middle block."""
    found: Tensor = decoder.mid_block(_stepped(decoder.conv_in, part, cache, 0), feat_cache=cache, feat_idx=[1])
    return found


def decoded_frames(decoder: Any, part: Tensor, cache: list[Any], is_first: bool) -> Tensor:
    """Return the frames of a latent frame, or of a tile of it, from its map after the middle block."""
    at = [0]
    for block in decoder.up_blocks:
        part = block(part, feat_cache=cache, feat_idx=at, first_chunk=is_first)
    return _stepped(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(part)), cache, at[0])


def encoded_map(encoder: Any, part: Tensor, cache: list[Any]) -> Tensor:
    """Return the map before the middle block of a latent frame's frames, or of a tile of them."""
    at, part = [1], _stepped(encoder.conv_in, part, cache, 0)
    for layer in encoder.down_blocks:
        part = layer(part, feat_cache=cache, feat_idx=at)
    return part


def encoded_middle(encoder: Any, part: Tensor, cache: list[Any]) -> Tensor:
    """Return what the encoder makes of a latent frame's map before the middle block."""
    at = [0]
    part = encoder.mid_block(part, feat_cache=cache, feat_idx=at)
    return _stepped(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(part)), cache, at[0])


def _stepped(conv: Any, x: Tensor, cache: list[Any], index: int) -> Tensor:
    """Return a causal convolution of frames after those in its cache, which then holds the last two."""
    before, kept = cache[index], x[:, :, -KEPT:].clone()
    if kept.shape[2] < KEPT and before is not None:
        kept = torch.cat([before[:, :, -1:], kept], dim=2)
    output: Tensor = conv(x, before)
    cache[index] = kept
    return output


@without_gradients
def decode_tiles(vae: Any, latents: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the frames (B, 3, H, W) of a video, about [-1, 1], not clamped, in float16 on the CPU."""
    decoder, margin, batch = vae.decoder, margin_of(vae, "decoder"), latents.shape[0]
    scale, frames = scale_of(vae, "decoder"), _convs(vae, "decoder")[-1].frames
    count, h, w = latents.shape[2:]
    given, cache = vae.post_quant_conv(latents), cache_of(decoder)
    channels, total = decoder.conv_in.out_channels, (count - 1) * frames + 1
    with (
        _spooled((batch, channels, count, h, w), latents.dtype) as held,
        _spooled((batch, 3, total, h * scale, w * scale), torch.float16) as video,
    ):
        for index in range(count):
            held[:, :, index : index + 1] = decoded_middle(decoder, given[:, :, index : index + 1], cache)
        for rows, columns in tiles_of((h, w), side):
            (top, bottom), (left, right) = _widened(rows, h, margin), _widened(columns, w, margin)
            inside = _within(rows, top, scale), _within(columns, left, scale)
            inner, cache, first = (_scaled(rows, scale), _scaled(columns, scale)), cache_of(decoder), 0
            for index in range(count):
                part = held[:, :, index : index + 1, top:bottom, left:right].to(latents.device)
                made = as_pixels(vae, decoded_frames(decoder, part, cache, index == 0))
                video[:, :, first : first + made.shape[2], *inner] = made[..., *inside]
                first += made.shape[2]
        yield from (frame.clone() for frame in video.unbind(2))


@without_gradients
def encode_tiles(vae: Any, parts: Callable[[], Iterable[Tensor]], shape: Sequence[int], side: int) -> Tensor:
    """Return what the encoder makes of a video, (B, 2 C, f, h, w), for `posterior`.

    `parts` gives the frames of each latent frame, once for every tile; `shape` is (B, f, h, w).
    """
    encoder, margin = vae.encoder, margin_of(vae, "encoder")
    scale, features, cache = scale_of(vae, "encoder"), [], cache_of(encoder)
    batch, count, h, w = shape
    with _spooled((batch, encoder.norm_out.gamma.shape[0], count, h, w), next(vae.parameters()).dtype) as held:
        for rows, columns in tiles_of((h, w), side):
            (top, bottom), (left, right) = _widened(rows, h, margin), _widened(columns, w, margin)
            seen, inside = (_scaled((top, bottom), scale), _scaled((left, right), scale)), cache_of(encoder)
            for index, part in enumerate(parts()):
                made = encoded_map(encoder, as_patches(vae, part[..., *seen]), inside)
                cut = made[..., *(_within(rows, top, 1), _within(columns, left, 1))]
                held[:, :, index : index + 1, slice(*rows), slice(*columns)] = cut
        for index in range(count):
            part = held[:, :, index : index + 1].to(next(vae.parameters()).device)
            features.append(encoded_middle(encoder, part, cache))
        return torch.cat(features, dim=2)


def tiles_of(size: Size, side: int) -> Iterator[tuple[Span, Span]]:
    """Yield (rows, columns) of the tiles that cover a map, each cell once."""
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            yield (top, min(top + side, size[0])), (left, min(left + side, size[1]))


def _widened(span: Span, length: int, margin: int) -> Span:
    return max(span[0] - margin, 0), min(span[1] + margin, length)


def _scaled(span: Span, scale: int) -> slice:
    return slice(span[0] * scale, span[1] * scale)


def _within(span: Span, first: int, scale: int) -> slice:
    """Return where a span is in a tile that begins at `first`."""
    return slice((span[0] - first) * scale, (span[1] - first) * scale)


@contextmanager
def _spooled(shape: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Return a tensor in a temporary file for the body of the `with`."""
    with tempfile.NamedTemporaryFile() as file:
        yield torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)
