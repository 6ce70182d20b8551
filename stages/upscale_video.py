"""Frames of a video -> the clean reference of the next level, through RGB: the ablation of the paper's video table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from freescale import Step
from freescale.vae.tile import TiledVae, reader
from stages.decode_video import frames_of
from stages.denoise import LATENT_AXES
from stages.stage import Parents, Running, Stage, latent_shape, not_in_key, video_of
from stages.upscale import encode

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class UpscaleVideo(Stage):
    """{"latents": (1, C, F, h, w)}: every frame enlarged by bicubic interpolation in RGB and encoded again."""

    name = "upscale"
    version = 102  # another arithmetic under the same name
    part = "vae"
    axes = LATENT_AXES
    streamed = frozenset({"image"})

    seed: int
    level: int
    size: tuple[int, int]
    posterior: str
    frames: int = not_in_key()  # of the parent

    @property
    def span(self) -> tuple[int, int]:
        """A step a frame."""
        return 0, self.frames

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Running:
        """One frame in memory at output size; the posterior's noise is keyed by level and frame."""
        latents, first = torch.empty(latent_shape(self.size, models.info.latent_channels, self.frames)), 0
        if resume is not None:
            first = resume.index + 1
            latents[:, :, :first] = resume.latents
        left = range(first, self.frames)
        made = frames_of(self, parents, models, options, left, "encoder", self.size)
        for index, frame in zip(left, made, strict=True):
            latents[:, :, index] = frame
            yield Step(index, latents[:, :, : index + 1])
        return {"latents": latents}

    @torch.no_grad()
    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """Latents (1, C, h, w) of a frame."""
        run = models.tiles(index)
        larger = self._larger(parents, models, index)
        return encode(models, options, larger, self.posterior, self.seed, self.level, index, run=run)

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The encoder over an enlarged frame."""
        return TiledVae(models.vae, "encoder", self.size, reader(self._larger(parents, models, frame)))

    def _larger(self, parents: Parents, models: Models, index: int) -> Tensor:
        """A frame (1, 3, H, W) at this level's size."""
        image = video_of(parents, "image")[index].to(models.device, torch.float32)
        return F.interpolate(image, size=self.size, mode="bicubic", align_corners=False)
