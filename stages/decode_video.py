"""Latents of a video -> its frames, one at a time: memory holds one frame at output size, however long the video is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.decode import UNIFORM, decoded_whole, decoder, is_tiled
from stages.errors import StageError
from stages.stage import Parents, Stage, Stream

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

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> dict[str, Stream]:
        """Decode while the frames are written. Raises `StageError` for a video that shows nothing."""
        h, w = parents["latents"]["latents"].shape[-2:]

        def pieces(kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
            missing = [index for index in range(self.frames) if index not in kept]
            return checked(frames_of(self, parents, models, options, missing, "decoder", (h, w)), missing, kept)

        return {"image": Stream((1, 3, self.frames, h * 8, w * 8), torch.float16, pieces)}

    @torch.no_grad()
    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """A frame (1, 3, H, W) in float16."""
        latents = parents["latents"]["latents"][:, :, index].to(models.device, torch.float32)
        return decoded_whole(latents, models, options, index).to(torch.float16).cpu()

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The decoder over the latents of a frame."""
        return decoder(parents["latents"]["latents"][:, :, frame], models)


def frames_of(
    stage: Stage,
    parents: Parents,
    models: Models,
    options: RunOptions,
    indices: Iterable[int],
    half: Half,
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """A stage's `make_frame` of each index, in order, where half a VAE takes inputs of `size`.

    Helpers compute a frame each or, where frames go by tiles, the tiles of one after another.
    """
    if models.helpers is not None and not is_tiled(models, half, size, options):
        return models.helpers.frames(indices, options)
    return (stage.make_frame(parents, models, options, index) for index in indices)


def checked(frames: Iterator[Tensor], indices: list[int], kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
    """Hand on frames (1, 3, H, W), which together with those that are kept must show something."""
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
