"""A level's result -> the clean reference of the next level (paper §3.2, tailored self-cascade)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from freescale import enlarge_latents, normal
from stages.denoise import LATENT_AXES
from stages.stage import Parents, Stage, Tensors

if TYPE_CHECKING:
    from freescale import Step
    from freescale.enlarge import Interpolation
    from stages.models import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class Upscale(Stage):
    """{"latents": (1, C, h, w)}: the picture enlarged by bicubic interpolation in RGB and encoded again."""

    name = "upscale"
    part = "vae"
    axes = LATENT_AXES

    seed: int
    level: int
    size: tuple[int, int]
    posterior: str

    @torch.no_grad()
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Bicubic without antialiasing, corners not aligned, nothing clamped, as released."""
        image = parents["image"]["image"].to(models.device, torch.float32)
        larger = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False)
        return {"latents": encode(models, larger, self.posterior, self.seed, self.level)}


@dataclass(frozen=True)
class UpscaleLatents(Stage):
    """{"latents": (1, C, [F,] h, w)}: no VAE: the paper's way for clips, its ablation for images."""

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
        """Resize with antialiasing to the first size, then encode."""
        picture = parents["picture"]["picture"].permute(2, 0, 1)[None].to(models.device, torch.float32)
        image = picture / 127.5 - 1
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False, antialias=True)
        return {"latents": encode(models, image.clamp(-1, 1), self.posterior, self.seed, 0)}


def encode(models: Models, image: Tensor, posterior: str, seed: int, *purpose: int) -> Tensor:
    """(1, 3, H, W) in [-1, 1] -> scaled latents (1, C, h, w), a keyed sample or the mode of the posterior.

    The sample is keyed by the seed and by `purpose`: the level and, of a clip, the frame.
    """
    distribution = models.vae.encode(image).latent_dist
    latents: Tensor = distribution.mean
    if posterior == "sample":
        noise = normal(tuple(latents.shape), seed, "vae_posterior", *purpose)
        latents = latents + distribution.std * noise.to(latents.device)
    scaled: Tensor = latents * models.vae.config.scaling_factor
    return scaled.float().cpu()
