"""A level's result -> the clean reference of the next level (paper §3.2, tailored self-cascade)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from freescale import enlarge_latents, normal
from freescale.enlarge import bicubic_region
from freescale.vae.passes import encode_tiles
from freescale.vae.tile import TiledVae, reader
from stages.decode import is_tiled
from stages.denoise import LATENT_AXES
from stages.stage import Parents, Picture, Stage, Tensors, picture_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from freescale import Step
    from freescale.enlarge import Interpolation
    from freescale.vae.layers import Region
    from freescale.vae.passes import Run
    from freescale.vae.tile import Read
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class Upscale(Stage):
    """{"latents": (1, C, h, w)}: the picture enlarged by bicubic interpolation in RGB and encoded again."""

    name = "upscale"
    part = "vae"
    axes = LATENT_AXES
    by_region = frozenset({"image"})

    seed: int
    level: int
    size: tuple[int, int]
    posterior: str

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Bicubic without antialiasing, corners not aligned, nothing clamped, as released."""
        picture = picture_of(parents, "image")
        if is_tiled(models, "encoder", self.size, options):
            moments = encoded_larger(picture, self.size, models, options)
            return {"latents": drawn(models, *_posterior(moments), self.posterior, self.seed, self.level)}
        image = picture.whole().to(models.device, torch.float32)
        larger = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False)
        return {"latents": encode(models, options, larger, self.posterior, self.seed, self.level)}

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The encoder over the enlarged picture."""
        return TiledVae(models.vae, "encoder", self.size, _enlarged(picture_of(parents, "image"), self.size))


@dataclass(frozen=True)
class UpscaleLatents(Stage):
    """{"latents": (1, C, [F,] h, w)}: no VAE: the paper's way for videos, its ablation for images."""

    name = "upscale"
    version = 101  # another arithmetic under the same name
    axes = LATENT_AXES

    size: tuple[int, int]
    mode: Interpolation | None = None  # None: bicubic

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Enlarge to an eighth of `size`, each frame for itself."""
        cells = (self.size[0] // 8, self.size[1] // 8)
        return {"latents": enlarge_latents(parents["latents"]["latents"], cells, self.mode)}


@dataclass(frozen=True)
class EncodePicture(Stage):
    """{"latents": (1, C, h, w)}: a source picture at the first size, encoded (paper §3.4)."""

    name = "encode"
    part = "vae"
    axes = LATENT_AXES

    seed: int
    size: tuple[int, int]
    posterior: str

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Resize with antialiasing to the first size, then encode; by tiles, the picture stays on the host."""
        device = "cpu" if is_tiled(models, "encoder", self.size, options) else models.device
        picture = parents["picture"]["picture"].permute(2, 0, 1)[None].to(device, torch.float32)
        image = picture / 127.5 - 1
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False, antialias=True)
        return {"latents": encode(models, options, image.clamp(-1, 1), self.posterior, self.seed, 0)}


def encode(
    models: Models, options: RunOptions, image: Tensor, posterior: str, seed: int, *purpose: int, run: Run | None = None
) -> Tensor:
    """(1, 3, H, W) in [-1, 1] -> scaled latents (1, C, h, w), a keyed sample or the mode of the posterior.

    The sample is keyed by the seed and by `purpose`: the level and, of a video, the frame. By tiles, computed by `run`,
    where the whole would take more than `vae_memory`.
    """
    size = (image.shape[2], image.shape[3])
    if is_tiled(models, "encoder", size, options):
        moments = encoded(reader(image), size, models, options, run)
        return drawn(models, *_posterior(moments), posterior, seed, *purpose)
    distribution = models.vae.encode(image).latent_dist
    return drawn(models, distribution.mean, distribution.std, posterior, seed, *purpose)


def drawn(models: Models, mean: Tensor, deviation: Tensor, posterior: str, seed: int, *purpose: int) -> Tensor:
    """Scaled latents of a posterior: its mean, or for `sample` a keyed draw."""
    latents = mean
    if posterior == "sample":
        noise = normal(tuple(latents.shape), seed, "vae_posterior", *purpose)
        latents = latents + deviation * noise.to(latents.device)
    scaled: Tensor = latents * models.vae.config.scaling_factor
    return scaled.float().cpu()


def encoded_larger(picture: Picture, size: tuple[int, int], models: Models, options: RunOptions) -> Tensor:
    """Moments (1, 2C, h, w) of a picture enlarged to `size`, of which no more than a tile is held."""
    run = models.tiles()
    return encoded(_enlarged(picture, size), size, models, options, run)


def encoded(read: Read, size: tuple[int, int], models: Models, options: RunOptions, run: Run | None = None) -> Tensor:
    """Moments (1, 2C, h, w) of a picture that is read by regions, its tiles computed by `run`."""
    assert options.vae_memory is not None
    return encode_tiles(models.vae, read, size, options.vae_tile, options.vae_memory, run)


def _enlarged(picture: Picture, size: tuple[int, int]) -> Callable[[Region], Tensor]:
    """Regions of a picture enlarged to `size`, each made when it is asked for."""

    def part(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        return picture.region(rows, columns).float()

    return lambda region: bicubic_region(part, picture.size, size, *region)


def _posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation that moments (1, 2C, h, w) stand for; the logarithm is bounded as in diffusers."""
    mean, logarithm = moments.chunk(2, dim=1)
    return mean, (0.5 * logarithm.clamp(-30, 20)).exp()
