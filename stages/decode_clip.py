"""Latents of a clip -> its frames, one at a time: memory holds one frame at output size, whatever the clip's length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.decode import UNIFORM, decoded_whole
from stages.stage import Parents, Stage, StageError, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from freescale import Step
    from stages.models import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class DecodeClip(Stage):
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
        """Decode while the frames are written. Raises `StageError` for a clip that shows nothing."""
        latents = parents["latents"]["latents"]
        _, _, frames, h, w = latents.shape
        shape = (1, 3, frames, h * 8, w * 8)
        return {"image": Stream(shape, torch.float16, lambda: decoded(latents, models, options))}


@torch.no_grad()
def decoded(latents: Tensor, models: Models, options: RunOptions) -> Iterator[Tensor]:
    """The frames (1, 3, H, W) of clean latents (1, C, F, h, w), in float16 on the CPU."""
    shows = False
    for index in range(latents.shape[2]):
        frame = latents[:, :, index].to(models.device, torch.float32)
        image = decoded_whole(frame, models, options)
        if not torch.isfinite(image).all():
            raise StageError(f"decode: frame {index} holds NaN or Inf")
        shows |= bool(image.std() >= UNIFORM / 2)
        if index + 1 == latents.shape[2] and not shows:
            raise StageError("decode: every frame is uniform")
        yield image.to(torch.float16).cpu()
