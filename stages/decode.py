"""Latents -> picture: whole, or where that would take more than `vae_memory`, by exact tiles into bands of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from freescale.vae.passes import decode_tiles, untiled_bytes
from freescale.vae.tile import TiledVae, reader
from stages.errors import StageError
from stages.stage import Parents, Stage, Stream, Tensors

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from torch import Tensor

    from freescale import Step
    from freescale.vae.layers import Half
    from stages.models.load import Models
    from stages.spec import RunOptions

UNIFORM = 2 / 255  # a picture whose deviation is under half a grey level of 255 shows nothing
BAND = 1024  # rows: a chunk of the store, and a multiple of every tile


@dataclass(frozen=True)
class Decode(Stage):
    """{"image": (1, 3, H, W)} about [-1, 1], not clamped, kept in float16 (an eighth of an 8-bit level)."""

    name = "decode"
    part = "vae"
    axes: ClassVar[Mapping[str, str]] = {"image": "BCHW"}

    @torch.no_grad()
    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> Tensors | dict[str, Stream]:
        """Decode the clean latents of a level. Raises `StageError` for a picture that shows nothing."""
        latents = parents["latents"]["latents"].to(models.device, torch.float32)
        height, width = latents.shape[-2:]
        if is_tiled(models, "decoder", (height, width), options):
            shape = (1, 3, 8 * height, 8 * width)
            return {"image": Stream(shape, torch.float16, lambda kept: _others(latents, models, options, kept))}
        image = decoded_whole(latents, models, options)
        if not torch.isfinite(image).all():
            raise StageError("decode: the picture holds NaN or Inf")
        if image.std() < UNIFORM / 2:
            raise StageError(f"decode: the picture is uniform (deviation {image.std().item():.1e})")
        return {"image": image.to(torch.float16).cpu()}

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The decoder over the latents of a level."""
        return decoder(parents["latents"]["latents"], models)


def decoder(latents: Tensor, models: Models) -> TiledVae:
    """The decoder over clean latents (1, C, h, w)."""
    scaled = _scaled(latents.to(models.device, torch.float32), models)
    return TiledVae(models.vae, "decoder", (scaled.shape[-2], scaled.shape[-1]), reader(scaled))


def is_tiled(models: Models, half: Half, size: tuple[int, int], options: RunOptions) -> bool:
    """Whether a half of the VAE takes an input of `size` by tiles: where whole it would take more than `vae_memory`."""
    memory = options.vae_memory
    return memory is not None and 0 < memory < untiled_bytes(models.vae, half, size)


def decoded_whole(latents: Tensor, models: Models, options: RunOptions, frame: int = 0) -> Tensor:
    """The picture (1, 3, H, W) of clean latents (1, C, h, w) in one piece; made by tiles, it is on the CPU.

    `frame` says which one of a video it is, if it is one.
    """
    scaled = _scaled(latents, models)
    height, width = latents.shape[-2:]
    if not is_tiled(models, "decoder", (height, width), options):
        whole: Tensor = models.vae.decode(scaled).sample
        return whole
    assert options.vae_memory is not None
    image = torch.empty(1, 3, 8 * height, 8 * width)
    run = models.tiles(frame)
    for rows, columns, tile in decode_tiles(models.vae, scaled, options.vae_tile, options.vae_memory, run):
        image[..., slice(*rows), slice(*columns)] = tile
    return image


def _others(latents: Tensor, models: Models, options: RunOptions, kept: Container[int]) -> Iterator[Tensor]:
    """The bands that are not kept; statistics and tiles of all are made for them."""
    bands = enumerate(decoded_bands(latents, models, options))
    return (band for index, band in bands if index not in kept)


def decoded_bands(latents: Tensor, models: Models, options: RunOptions) -> Iterator[Tensor]:
    """Bands (1, 3, up to `BAND`, W) of the picture of clean latents (1, C, h, w), in float16 on the CPU.

    Raises `StageError` for a picture that shows nothing, before the last band.
    """
    height, width = (8 * cells for cells in latents.shape[-2:])
    assert options.vae_memory is not None
    total = squares = 0.0
    band = torch.empty(0)
    how = (options.vae_tile, options.vae_memory, models.tiles())
    for rows, columns, tile in decode_tiles(models.vae, _scaled(latents, models), *how):
        if not torch.isfinite(tile).all():
            raise StageError("decode: the picture holds NaN or Inf")
        total, squares = total + tile.double().sum().item(), squares + tile.double().square().sum().item()
        top = rows[0] // BAND * BAND
        if rows[0] == top and columns[0] == 0:
            band = torch.empty(1, 3, min(BAND, height - top), width, dtype=torch.float16)
        band[..., rows[0] - top : rows[1] - top, slice(*columns)] = tile
        count = 3 * rows[1] * width
        if rows[1] == height and columns[1] == width and squares / count - (total / count) ** 2 < (UNIFORM / 2) ** 2:
            raise StageError("decode: the picture is uniform")
        if rows[1] - top == band.shape[2] and columns[1] == width:
            yield band


def _scaled(latents: Tensor, models: Models) -> Tensor:
    """As the VAE takes them."""
    scaled: Tensor = latents / models.vae.config.scaling_factor
    return scaled
