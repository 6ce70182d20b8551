"""Latents -> picture, in one piece or by exact tiles; latents of a video -> its frames, one at a time.

Tiles are computed where one piece would take more than `vae_memory`. Of a video memory holds one frame at output size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from freescale.gradients import without_gradients
from freescale.vae.codec import codec_of
from freescale.vae.passes import decode_tiles
from freescale.vae.plan import untiled_bytes
from freescale.vae.tile import TiledVae, reader
from stages.errors import StageError
from stages.stage import Cost, FrameStage, Networks, Parents, Size, Stage, Stream, Tensors, picture_bytes

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from torch import Tensor

    from freescale import Step
    from freescale.vae.layers import Half
    from stages.models.load import Models
    from stages.spec import RunOptions
    from stages.stage import ByFrame

UNIFORM = 2 / 255  # a grey level of 255; a picture whose deviation is under half of it shows nothing
FLOAT16 = 2  # bytes
BAND = 1024  # rows: a chunk of the store, and a multiple of every tile


@dataclass(frozen=True)
class Decode(Stage):
    """{"image": (1, 3, H, W)} about [-1, 1], not clamped, kept in float16 (an eighth of an 8-bit level)."""

    name = "decode"
    part = "vae"
    axes: ClassVar[Mapping[str, str]] = {"image": "BCHW"}

    @without_gradients
    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> Tensors | dict[str, Stream]:
        """Decode the clean latents of a level. Raises `StageError` for a picture that shows nothing."""
        latents = parents["latents"]["latents"].to(models.device, torch.float32)
        height, width = latents.shape[-2:]
        if is_tiled(models, "decoder", (height, width), options):
            shape = (1, 3, models.info.cell * height, models.info.cell * width)
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

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The decoder over one picture."""
        return networks.decode(source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """A picture in float16."""
        return 3 * size[0] * size[1] * FLOAT16


@dataclass(frozen=True)
class DecodeVideo(FrameStage):
    """{"image": (1, 3, F, H, W)} about [-1, 1], not clamped, in float16; each frame as `Decode` makes a picture."""

    name = "decode"
    part = "vae"

    frames: int

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> dict[str, Stream]:
        """Decode while the frames are written. Raises `StageError` for a video that shows nothing."""
        (h, w), cell = parents["latents"]["latents"].shape[-2:], models.info.cell

        def pieces(kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
            missing = [index for index in range(self.frames) if index not in kept]
            return checked(frames_of(self, parents, models, options, missing, "decoder", (h, w)), missing, kept)

        return {"image": Stream((1, 3, self.frames, h * cell, w * cell), torch.float16, pieces)}

    @without_gradients
    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """A frame (1, 3, H, W) in float16."""
        latents = parents["latents"]["latents"][:, :, index].to(models.device, torch.float32)
        return decoded_whole(latents, models, options, index).to(torch.float16).cpu()

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The decoder over the latents of a frame."""
        return decoder(parents["latents"]["latents"][:, :, frame], models)

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The decoder over one frame after another; by tiles, with a frame beside them."""
        return networks.decode(source, held=picture_bytes(source)).times(frames)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Frames in float16."""
        return 3 * size[0] * size[1] * frames * FLOAT16


def decoder(latents: Tensor, models: Models) -> TiledVae:
    """The decoder over clean latents (1, C, h, w)."""
    scaled = _scaled(latents.to(models.device, torch.float32), models)
    return TiledVae(models.vae, "decoder", (scaled.shape[-2], scaled.shape[-1]), reader(scaled))


def is_tiled(models: Models, half: Half, size: tuple[int, int], options: RunOptions) -> bool:
    """Whether half a VAE works by tiles: where an input of `size` would take more than `vae_memory` in one piece.

    `size` is in pixels for the encoder, in latent cells for the decoder.
    """
    memory = options.vae_memory
    return memory is not None and 0 < memory < untiled_bytes(models.vae, half, size)


def decoded_whole(latents: Tensor, models: Models, options: RunOptions, frame: int = 0) -> Tensor:
    """Return the picture (1, 3, H, W), about [-1, 1], of clean latents (1, C, h, w); made by tiles, it is on the CPU.

    `frame` is the number of the frame in its video.
    """
    scaled = _scaled(latents, models)
    height, width = latents.shape[-2:]
    if not is_tiled(models, "decoder", (height, width), options):
        whole: Tensor = models.vae.decode(scaled).sample
        return whole
    assert options.vae_memory is not None
    image = torch.empty(1, 3, models.info.cell * height, models.info.cell * width)
    run = models.tiles(frame)
    for rows, columns, tile in decode_tiles(models.vae, scaled, options.vae_tile, options.vae_memory, run):
        image[..., slice(*rows), slice(*columns)] = tile
    return image


def _others(latents: Tensor, models: Models, options: RunOptions, kept: Container[int]) -> Iterator[Tensor]:
    """Yield the bands that are not kept; all are computed, since statistics need the whole picture."""
    bands = enumerate(decoded_bands(latents, models, options))
    return (band for index, band in bands if index not in kept)


def decoded_bands(latents: Tensor, models: Models, options: RunOptions) -> Iterator[Tensor]:
    """Yield bands (1, 3, up to `BAND`, W) of the picture of clean latents (1, C, h, w), in float16 on the CPU.

    Raises `StageError` for a picture that shows nothing, before the last band.
    """
    height, width = (models.info.cell * cells for cells in latents.shape[-2:])
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
    """Return latents in the VAE's own scale."""
    return codec_of(models.vae).to_vae(latents)


def frames_of(
    stage: ByFrame,
    parents: Parents,
    models: Models,
    options: RunOptions,
    indices: Iterable[int],
    half: Half,
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """Yield a stage's `make_frame` of each index, in order.

    Helpers, where there are any, compute a frame each. Where half a VAE takes inputs of `size` by tiles, they compute
    the tiles of one frame after another.
    """
    if models.helpers is not None and not is_tiled(models, half, size, options):
        return models.helpers.frames(indices, options)
    return (stage.make_frame(parents, models, options, index) for index in indices)


def checked(frames: Iterator[Tensor], indices: list[int], kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
    """Yield frames (1, 3, H, W) unchanged, those of `indices`; `kept` are the frames of an attempt before.

    Raises `StageError` for a frame with NaN or Inf, and where all frames of the video are uniform.
    """
    shows = False
    for index, frame in zip(indices, frames, strict=True):
        if not torch.isfinite(frame).all():
            raise StageError(f"decode: frame {index} holds NaN or Inf")
        shows = shows or _shows(frame)
        if index == indices[-1] and not shows and not any(map(_shows, kept.values())):
            raise StageError("decode: every frame is uniform")
        yield frame


def _shows(frame: Tensor) -> bool:
    return bool(frame.float().std() >= UNIFORM / 2)
