"""The frames of the level below, enlarged in RGB -> latents of a causal VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from freescale import Step
from freescale.gradients import without_gradients
from freescale.vae.causal import encoded, posterior, spans_of
from freescale.vae.causal_tiles import encode_tiles, tile_side
from stages.stage import LATENT_AXES, Cost, FrameStage, Networks, Parents, Running, Size, cells_of, not_in_key, video_of
from stages.upscale import drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class UpscaleCausal(FrameStage):
    """{"latents": (1, C, f, h, w)}: every frame enlarged by bicubic interpolation in RGB, and all encoded again.

    A latent frame depends on all before it: after an interruption the stage begins anew.
    """

    name = "upscale"
    variant = 4
    part = "vae"
    axes = LATENT_AXES
    streamed = frozenset({"image"})

    seed: int
    level: int
    size: tuple[int, int]
    posterior: str
    frames: int = not_in_key(1)  # of the parent

    @without_gradients
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Running:
        """One latent frame's frames in memory at output size; the posterior's noise is keyed by the level."""
        spans, cells = list(spans_of(self.frames, models.info.time_cell)), cells_of(self.size, models.info.cell)
        side, features = tile_side(models.vae, "encoder", cells, options.vae_memory), []
        if side is not None:
            shape = (1, len(spans), *cells)
            features = [encode_tiles(models.vae, lambda: self._larger(parents, models, spans), shape, side)]
            yield Step(self.frames - 1, features[0], resumable=False)
        else:
            for (_, end), found in zip(spans, encoded(models.vae, self._larger(parents, models, spans)), strict=True):
                features.append(found)
                yield Step(end - 1, found, resumable=False)
        mean, deviation = posterior(models.vae, torch.cat(features, dim=2))
        return {"latents": drawn(models, mean, deviation, self.posterior, self.seed, self.level)}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The encoder over the enlarged frames of one latent frame after another, by tiles where memory asks for it."""
        return networks.encode_video(self.size, source, frames)

    def _larger(self, parents: Parents, models: Models, spans: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Yield the enlarged frames (1, 3, F, H, W) of each latent frame."""
        video = video_of(parents, "image")
        for first, end in spans:
            frames = (video[index].to(models.device, torch.float32) for index in range(first, end))
            larger = (F.interpolate(each, size=self.size, mode="bicubic", align_corners=False) for each in frames)
            yield torch.stack(list(larger), dim=2)
