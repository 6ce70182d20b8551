"""Latents of a causal VAE -> the frames of a video, a latent frame at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale.vae.causal import decoded
from freescale.vae.causal_tiles import decode_tiles, tile_side
from freescale.vae.codec import codec_of
from stages.decode import FLOAT16, checked
from stages.stage import Cost, FrameStage, Networks, Parents, Size, Stream

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class DecodeCausal(FrameStage):
    """{"image": (1, 3, F, H, W)} about [-1, 1], not clamped, in float16.

    A frame depends on all before it. So after an interruption every frame is computed again, and those that were
    written are left as they are.
    """

    name = "decode"
    variant = 1
    part = "vae"

    frames: int

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> dict[str, Stream]:
        """Decode while the frames are written. Raises `StageError` for a video that shows nothing."""
        latents = parents["latents"]["latents"]
        (h, w), cell = latents.shape[-2:], models.info.cell

        def pieces(kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
            missing = [index for index in range(self.frames) if index not in kept]
            return checked(_frames(latents, models, options, missing), missing, kept)

        return {"image": Stream((1, 3, self.frames, h * cell, w * cell), torch.float16, pieces)}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The decoder over one latent frame after another, by tiles where memory asks for it."""
        return networks.decode_video(source, frames)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Frames in float16."""
        return 3 * size[0] * size[1] * frames * FLOAT16


def _frames(latents: Tensor, models: Models, options: RunOptions, wanted: Container[int]) -> Iterator[Tensor]:
    """Return the frames (1, 3, H, W) that are wanted, in float16 on the CPU."""
    scaled = codec_of(models.vae).to_vae(latents.to(models.device, torch.float32))
    side = tile_side(models.vae, "decoder", (scaled.shape[3], scaled.shape[4]), options.vae_memory)
    frames = _whole(models.vae, scaled) if side is None else decode_tiles(models.vae, scaled, side)
    return (frame for index, frame in enumerate(frames) if index in wanted)


def _whole(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    for part in decoded(vae, latents):
        yield from (frame.to(torch.float16).cpu() for frame in part.unbind(2))
