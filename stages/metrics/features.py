"""Stages that read a picture: features of the whole and of its crops, and for `shapes` what it shows.

Being stages, their results are in the store under what decides them, so an evaluation of a thousand pictures goes on
where it was, and another crop count or network renders nothing again. A picture is read as the 8-bit RGB that is
exported, whatever it came from: a render, a file, or a scene drawn at the target size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from stages.export import to_pixels
from stages.media.picture import LoadPicture
from stages.metrics import resize
from stages.metrics.crops import Box, grid_boxes, random_boxes
from stages.metrics.detail import read_detail
from stages.metrics.extractors import WeightFile, load_extractor
from stages.shapes.metrics import judge
from stages.shapes.scenes import draw, sample_scene
from stages.stage import Parents, Stage, Tensors, added, not_in_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freescale import Step
    from stages.media.picture import CheckedPicture
    from stages.models.load import Models
    from stages.spec import RunOptions

BATCH = 16  # crops in the network at once


@dataclass(frozen=True)
class Features(Stage):
    """{"features": (1, d), "logits": (1, c), "crops": (k, d), "detail": (1, 5)}: what network and fields give.

    `picture` names the picture for its crops. With `crop_side` 0 there are none; crops of the network's own size are
    not resized.
    """

    axes: ClassVar[Mapping[str, str]] = {"features": "ND", "logits": "NC", "crops": "ND", "detail": "ND"}

    extractor: str
    weights: str  # sha256
    resize: str
    crop_side: int
    crop_count: int  # 0: all of a grid
    crop_seed: int
    picture: str
    path: str = not_in_key("")  # of the weights
    base_side: float = added(0.0)  # pixels of a training picture's side, where detail is read too; 0: it is not

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Read the picture once, then its crops `BATCH` at a time."""
        network = load_extractor(WeightFile(self.extractor, self.path, self.weights), models.device)
        pixels = self.pixels(parents)
        found = network.extract(pixels[None])
        if self.crop_side:
            crops = [box.of(pixels) for box in self.boxes((pixels.shape[-2], pixels.shape[-1]))]
            parts = [torch.stack(crops[at : at + BATCH]) for at in range(0, len(crops), BATCH)]
            found["crops"] = torch.cat([network.extract(part)["features"] for part in parts])
        read = {name: rows.float().contiguous() for name, rows in found.items()}
        return read | {"detail": read_detail(pixels, self.base_side)[None]} if self.base_side else read

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """Return where the crops of a picture of `size` (height, width) are."""
        if self.crop_count:
            return random_boxes(size, self.crop_side, self.crop_count, self.crop_seed, self.picture)
        return grid_boxes(size, self.crop_side)

    def pixels(self, parents: Parents) -> Tensor:
        """Return the picture, (3, H, W) uint8."""
        raise NotImplementedError


@dataclass(frozen=True)
class RenderFeatures(Features):
    """The features of a render's decoded image, as it is exported."""

    name = "render_features"

    def pixels(self, parents: Parents) -> Tensor:
        """Return the exported pixels of the parent `image`, (3, H, W) uint8."""
        return torch.from_numpy(np.array(to_pixels(parents["image"]["image"]))).permute(2, 0, 1)


@dataclass(frozen=True)
class FileFeatures(Features):
    """The features of a picture file, identified by its sha256."""

    name = "file_features"

    digest: str = ""
    file: str = not_in_key("")

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Decode the file, which must still be the one that was checked, and read it."""
        picture = LoadPicture(self.digest, "RGB", self.file).run({}, models, options)
        return super().run({"picture": picture}, models, options)

    def pixels(self, parents: Parents) -> Tensor:
        """Return the pixels of the file, (3, H, W) uint8."""
        return parents["picture"]["picture"].permute(2, 0, 1)


@dataclass(frozen=True)
class ConvertedFeatures(FileFeatures):
    """The features of a file whose levels are not the picture's (`stages.media.picture.ConvertPicture`)."""

    variant = 1


@dataclass(frozen=True)
class SceneFeatures(Features):
    """The features of a true rendering of a `shapes` scene at `size` (height, width)."""

    name = "scene_features"

    scene: int = 0
    size: tuple[int, int] = (0, 0)

    def pixels(self, parents: Parents) -> Tensor:
        """Return the pixels of the scene, (3, H, W) uint8."""
        height, width = self.size
        image = draw(sample_scene(self.scene, width / height), height, width)
        return torch.from_numpy(np.array(to_pixels(image[None]))).permute(2, 0, 1)


@dataclass(frozen=True)
class Judge(Stage):
    """{"verdict": (4) int64}: objects found, then 1 or 0 for colour, shape and background as the caption has them."""

    name = "judge"
    axes: ClassVar[Mapping[str, str]] = {"verdict": "N"}

    caption: str
    base_area: int  # pixels of a training picture

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Hold the parent `image` against the caption."""
        found = judge(parents["image"]["image"][0].float(), self.caption, base_area=self.base_area)
        return {"verdict": torch.tensor([found.count, found.color_ok, found.shape_ok, found.background_ok]).long()}


@dataclass(frozen=True)
class Reader:
    """How every picture of an evaluation is read: one network over one set of crops."""

    weights: WeightFile
    crop_side: int = 0
    crop_count: int = 0
    crop_seed: int = 0
    base_side: float = 0.0  # pixels, where detail is read too

    def _fields(self, picture: str) -> tuple[str, str, str, int, int, int, str, str, float]:
        crops = (self.crop_side, self.crop_count, self.crop_seed)
        return (self.weights.name, self.weights.sha256, resize.NAME, *crops, picture, self.weights.path, self.base_side)

    def render(self, picture: str) -> RenderFeatures:
        """Return the stage that reads a render's image."""
        return RenderFeatures(*self._fields(picture))

    def file(self, picture: str, checked: CheckedPicture) -> FileFeatures:
        """Return the stage that reads a checked file."""
        kind = ConvertedFeatures if checked.converted else FileFeatures
        return kind(*self._fields(picture), checked.digest, str(checked.path))

    def scene(self, picture: str, seed: int, size: tuple[int, int]) -> SceneFeatures:
        """Return the stage that draws a scene and reads it."""
        return SceneFeatures(*self._fields(picture), seed, size)
