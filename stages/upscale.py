"""A level's result -> the clean reference of the next level (paper §3.2, tailored self-cascade).

`Upscale` enlarges a picture in RGB and encodes it again, `UpscaleVideo` every frame of a video (the ablation of the
paper's video table), `UpscaleLatents` enlarges latents. `EncodePicture` makes a picture from outside the first level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F

from freescale import Step, normal
from freescale.enlarge import enlarged_by, enlarged_region, sharpened_region
from freescale.gradients import without_gradients
from freescale.structure import mix_bands
from freescale.vae.codec import PatchCodec, codec_of
from freescale.vae.codec import enlarged as larger_by
from freescale.vae.passes import encode_tiles
from freescale.vae.tile import TiledVae, reader
from stages.decode import BAND, FLOAT16, frames_of, is_tiled
from stages.models.upscaler import UpscalerFile, load_upscaler
from stages.stage import (
    LATENT_AXES,
    Cost,
    FrameStage,
    Networks,
    Parents,
    Picture,
    Running,
    Size,
    Stage,
    Stream,
    Tensors,
    added,
    cells_of,
    latent_shape,
    not_in_key,
    picture_bytes,
    picture_cost,
    picture_of,
    video_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from freescale.enlarge import Interpolation, PictureFilter
    from freescale.structure import BandFilter
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
    filter: PictureFilter = added("bicubic")
    clamp: bool = added(False)  # the picture to [-1, 1] before it is enlarged
    sharpening: tuple[float, float] | None = added(None)  # amount and deviation of an unsharp mask afterwards
    upscaler: str = not_in_key("")  # path of a network that enlarges in place of the filter
    upscaler_sha256: str = added("")

    @without_gradients
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Without antialiasing, corners not aligned, nothing clamped unless asked, as released."""
        read, size = self._enlarged(parents, models), self.size
        if is_tiled(models, "encoder", size, options):
            moments = encoded(read, size, models, options, models.tiles())
            return {"latents": drawn(models, *_posterior(moments), self.posterior, self.seed, self.level)}
        if self.filter == "bicubic" and not (self.clamp or self.sharpening or self.upscaler):
            image = picture_of(parents, "image").whole().to(models.device, torch.float32)
            larger = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
        else:
            larger = read(((0, size[0]), (0, size[1]))).to(models.device)
        return {"latents": encode(models, options, larger, self.posterior, self.seed, self.level)}

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The encoder over the enlarged picture."""
        return TiledVae(models.vae, "encoder", self.size, self._enlarged(parents, models))

    def _enlarged(self, parents: Parents, models: Models) -> Callable[[Region], Tensor]:
        if self.upscaler:
            return reader(by_network(self, parents, models))
        return enlarged(picture_of(parents, "image"), self.size, self.filter, self.clamp, self.sharpening)

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The encoder over the enlarged picture."""
        return networks.encode(self.size, source)


@dataclass(frozen=True)
class UpscaleMixed(Upscale):
    """{"latents": (1, C, h, w)}: the low band of the enlarged latents, the high band of the encoded enlarged picture.

    ScaleDiff's latent frequency mixing (arXiv:2510.25818). Parents: `image` and `latents` of the level below.
    """

    variant = 3

    band: tuple[int, int] = (1, 1)  # rows and columns of latent cells
    band_filter: BandFilter = "bilinear"

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Mix both."""
        picture = super().run(parents, models, options)["latents"]
        larger = larger_latents(models, parents["latents"]["latents"], (picture.shape[2], picture.shape[3]))
        return {"latents": mix_bands(picture, larger, self.band, self.band_filter, patch_codec(models))}


@dataclass(frozen=True)
class Enlarge(Stage):
    """{"image": (1, 3, H, W)}: the picture of the level below, enlarged, without any network."""

    name = "enlarge"
    axes: ClassVar[Mapping[str, str]] = {"image": "BCHW"}
    by_region = frozenset({"image"})

    size: tuple[int, int]
    filter: PictureFilter
    upscaler: str = not_in_key("")  # path of a network that enlarges in place of the filter
    upscaler_sha256: str = added("")

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> dict[str, Stream]:
        """Enlarge band by band; nothing is clamped."""
        if self.upscaler:
            read = reader(by_network(self, parents, models).cpu())
        else:
            read = enlarged(picture_of(parents, "image"), self.size, self.filter)
        height, width = self.size

        def pieces(kept: Mapping[int, Tensor]) -> Iterator[Tensor]:
            tops = enumerate(range(0, height, BAND))
            spans = ((top, min(top + BAND, height)) for index, top in tops if index not in kept)
            return (read((rows, (0, width))).to(torch.float16) for rows in spans)

        return {"image": Stream((1, 3, height, width), torch.float16, pieces)}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The picture of the level below, and a band; with a network both pictures, and not what it works with."""
        return picture_cost(self.size if self.upscaler else source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """A picture in float16."""
        return 3 * size[0] * size[1] * FLOAT16


@dataclass(frozen=True)
class UpscaleLatents(Stage):
    """{"latents": (1, C, [F,] h, w)} without the VAE: the paper's way for videos, and its ablation for images."""

    name = "upscale"
    variant = 1
    axes = LATENT_AXES

    size: tuple[int, int]
    mode: Interpolation | None = None  # None: bicubic

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Enlarge to the latent cells of `size`, each frame for itself."""
        cells = cells_of(self.size, models.info.cell)
        return {"latents": larger_latents(models, parents["latents"]["latents"], cells, self.mode)}


@dataclass(frozen=True)
class UpscaleVideo(FrameStage):
    """{"latents": (1, C, F, h, w)}: every frame enlarged by bicubic interpolation in RGB and encoded again."""

    name = "upscale"
    variant = 2
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
        """One frame in memory at output size; the posterior's noise is keyed by level and frame."""
        info, first = models.info, 0
        latents = torch.empty(latent_shape(self.size, info.latent_channels, info.cell, self.frames))
        if resume is not None:
            first = resume.index + 1
            latents[:, :, :first] = resume.latents
        left = range(first, self.frames)
        made = frames_of(self, parents, models, options, left, "encoder", self.size)
        for index, frame in zip(left, made, strict=True):
            latents[:, :, index] = frame
            yield Step(index, latents[:, :, : index + 1])
        return {"latents": latents}

    @without_gradients
    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """Latents (1, C, h, w) of a frame."""
        run = models.tiles(index)
        larger = self._larger(parents, models, index)
        return encode(models, options, larger, self.posterior, self.seed, self.level, index, run=run)

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The encoder over an enlarged frame."""
        return TiledVae(models.vae, "encoder", self.size, reader(self._larger(parents, models, frame)))

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The encoder over one enlarged frame after another; by tiles, with a frame beside them."""
        return networks.encode(self.size, source, held=picture_bytes(self.size)).times(frames)

    def _larger(self, parents: Parents, models: Models, index: int) -> Tensor:
        """A frame (1, 3, H, W) at this level's size."""
        image = video_of(parents, "image")[index].to(models.device, torch.float32)
        return F.interpolate(image, size=self.size, mode="bicubic", align_corners=False)


@dataclass(frozen=True)
class EncodePicture(Stage):
    """{"latents": (1, C, h, w)}: a source picture at the first size, encoded (paper §3.4)."""

    name = "encode"
    part = "vae"
    axes = LATENT_AXES

    seed: int
    size: tuple[int, int]
    posterior: str

    @without_gradients
    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Resize with antialiasing to the first size, then encode; by tiles, the picture stays on the host."""
        device = "cpu" if is_tiled(models, "encoder", self.size, options) else models.device
        picture = parents["picture"]["picture"].permute(2, 0, 1)[None].to(device, torch.float32)
        image = picture / 127.5 - 1
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, size=self.size, mode="bicubic", align_corners=False, antialias=True)
        return {"latents": encode(models, options, image.clamp(-1, 1), self.posterior, self.seed, 0)}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The encoder over the picture; by tiles, with the picture beside them."""
        return networks.encode(self.size, source, held=picture_bytes(self.size))


def encode(
    models: Models, options: RunOptions, image: Tensor, posterior: str, seed: int, *purpose: int, run: Run | None = None
) -> Tensor:
    """Return the scaled latents (1, C, h, w) of an image (1, 3, H, W) in [-1, 1].

    `posterior` is `mode` or `sample`; a sample is keyed by the seed and by `purpose`: the level and, of a video, the
    frame. Where the whole would take more than `vae_memory` it works by tiles, which `run` computes.
    """
    size = (image.shape[2], image.shape[3])
    if is_tiled(models, "encoder", size, options):
        moments = encoded(reader(image), size, models, options, run)
        return drawn(models, *_posterior(moments), posterior, seed, *purpose)
    distribution = models.vae.encode(image).latent_dist
    return drawn(models, distribution.mean, distribution.std, posterior, seed, *purpose)


def larger_latents(models: Models, latents: Tensor, cells: Size, mode: Interpolation | None = None) -> Tensor:
    """Return the network's latents enlarged, through the VAE's own where neighbours have different scales."""
    return larger_by(latents, cells, patch_codec(models), mode)


def patch_codec(models: Models) -> PatchCodec | None:
    """Return the codec of a VAE whose latents have other scales from cell to cell; None for others."""
    codec = codec_of(models.vae) if "batch_norm_eps" in models.info.configs.get("vae", {}) else None
    return codec if isinstance(codec, PatchCodec) else None


def drawn(models: Models, mean: Tensor, deviation: Tensor, posterior: str, seed: int, *purpose: int) -> Tensor:
    """Return scaled latents of a posterior: its mean, or for `sample` a draw keyed by seed and purpose."""
    latents = mean
    if posterior == "sample":
        noise = normal(tuple(latents.shape), seed, "vae_posterior", *purpose)
        latents = latents + deviation * noise.to(latents.device)
    return codec_of(models.vae).to_model(latents).float().cpu()


def encoded(read: Read, size: tuple[int, int], models: Models, options: RunOptions, run: Run | None = None) -> Tensor:
    """Return the moments (1, 2C, h, w) of a picture that is read by regions; `run` computes its tiles."""
    assert options.vae_memory is not None
    return encode_tiles(models.vae, read, size, options.vae_tile, options.vae_memory, run)


def enlarged(
    picture: Picture,
    size: tuple[int, int],
    kind: PictureFilter,
    clamp: bool = False,
    sharpening: tuple[float, float] | None = None,
) -> Callable[[Region], Tensor]:
    """Return a reader of regions of the picture enlarged to `size`; each is made when it is asked for.

    `clamp` cuts the picture to [-1, 1] before it is enlarged; `sharpening` is (amount, deviation) of an unsharp mask.
    """

    def part(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        region = picture.region(rows, columns).float()
        return region.clamp(-1, 1) if clamp else region

    def larger(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        return enlarged_region(part, picture.size, size, rows, columns, kind)

    if sharpening is None:
        return lambda region: larger(*region)
    return lambda region: sharpened_region(larger, size, *region, *sharpening)


def by_network(stage: Upscale | Enlarge, parents: Parents, models: Models) -> Tensor:
    """Return the picture (1, 3, H, W) of a stage's size, in [-1, 1], as its network enlarges it."""
    upscaler = load_upscaler(UpscalerFile(stage.upscaler, stage.upscaler_sha256), str(models.device))
    picture = picture_of(parents, "image").whole().to(models.device, torch.float32)
    return enlarged_by(upscaler.network, upscaler.scale, picture, stage.size, by_tiles=upscaler.by_tiles)


def _posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of moments (1, 2C, h, w); the log variance is clamped as in diffusers."""
    mean, logarithm = moments.chunk(2, dim=1)
    return mean, (0.5 * logarithm.clamp(-30, 20)).exp()
