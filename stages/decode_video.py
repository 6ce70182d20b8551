"""Latents of a video -> its frames, one at a time: memory holds one frame at output size, however long the video is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.decode import FLOAT16, UNIFORM, decoded_whole, decoder, is_tiled
from stages.errors import StageError
from stages.stage import (
    ByFrame,
    Cost,
    Networks,
    Parents,
    Size,
    Stage,
    Stream,
    picture_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from freescale import Step
    from freescale.vae.layers import Half
    from freescale.vae.tile import TiledVae
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class DecodeVideo(Stage):
    """{"image": (1, 3, F, H, W)} about [-1, 1], not clamped, in float16; each frame as `Decode` makes a picture."""

    name = "decode"
    part = "vae"

    frames: int

    @property
    def span(self) -> tuple[int, int]:
        """A step a frame."""
        return 0, self.frames

    @property
    def passes(self) -> int:
        """Once: a step is one frame."""
        return 1

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> dict[str, Stream]:
        """Decode while the frames are written. Raises `StageError` for a video that shows nothing."""
        (h, w), cell = parents["latents"]["latents"].shape[-2:], models.info.cell

        def pieces(kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
            missing = [index for index in range(self.frames) if index not in kept]
            return checked(frames_of(self, parents, models, options, missing, "decoder", (h, w)), missing, kept)

        return {"image": Stream((1, 3, self.frames, h * cell, w * cell), torch.float16, pieces)}

    @torch.no_grad()
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
