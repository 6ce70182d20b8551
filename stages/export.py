"""Picture -> a PNG, TIFF or WebP file with the spec in it. A PNG beyond 4096x4096 pixels is written band by band."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from stages.errors import SpecError
from stages.media.png import SRGB, write_png
from stages.stage import Cost, Networks, Parents, Picture, Size, Stage, Tensors, not_in_key, picture_cost, picture_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

SUFFIXES = {"png": ".png", "tiff": ".tiff", "webp": ".webp"}
WHOLE = 4096 * 4096  # pixels up to which a PNG is made at once
LARGEST = 8192 * 8192  # of a TIFF or WebP, which is always made at once
BAND = 256  # rows
PNG_RATIO = 0.66  # of the raw bytes, of the embedded model's pictures; a photograph takes up to 0.9
TIFF_DESCRIPTION, EXIF_DESCRIPTION = 270, 0x010E


@dataclass(frozen=True)
class Export(Stage):
    """The file `picture.<format>` of a level's image. It carries `provenance`: the spec, level and model, as JSON."""

    name = "export"
    by_region = frozenset({"image"})

    format: str
    provenance: str
    method: str = not_in_key("")  # its name, which `provenance` lacks

    @property
    def description(self) -> str:
        """What the file says: `provenance` with the name of the method."""
        return with_method(self.provenance, self.method)

    @property
    def file_name(self) -> str:
        """What the picture's file is called in the artifact."""
        return f"picture{SUFFIXES[self.format]}"

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """The digest of the 8-bit pixels, as {"pixels_sha256": 32 bytes}."""
        digest = hashlib.sha256()
        for band in bands(picture_of(parents, "image")):
            digest.update(band.numpy().tobytes())
        return {"pixels_sha256": torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)}

    def write_files(self, parents: Parents, folder: Path) -> None:
        """`picture.png` or the like, lossless in every format."""
        write_picture(folder / self.file_name, picture_of(parents, "image"), self)

    def tools(self) -> dict[str, str]:
        """None outside Python."""
        return {}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """A picture on the host."""
        return picture_cost(source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """A compressed picture."""
        return compressed_bytes(size)


def with_method(provenance: str, method: str) -> str:
    """Return `provenance` with the method's name in its spec, which keys have never held; FreeScale is the default."""
    if method in ("", "freescale"):
        return provenance
    record = json.loads(provenance)
    record["spec"]["method"] = {"name": method, **record["spec"].get("method", {})}
    return json.dumps(record, sort_keys=True)


def compressed_bytes(size: tuple[int, int], frames: int = 1) -> int:
    """About how many bytes a PNG of a picture has; for the frames of a video it is an upper bound."""
    return int(PNG_RATIO * 3 * size[0] * size[1] * frames)


def write_picture(path: Path, picture: Picture, export: Export) -> None:
    """Write a picture in the format of `export`; of a large PNG only a band of rows is in memory.

    Raises `SpecError` for a picture that is too large for its format.
    """
    height, width = picture.size
    check_whole(export.format, picture.size)
    if export.format == "png" and height * width > WHOLE:
        with path.open("wb") as out:
            write_png(out, picture.size, (band.numpy() for band in bands(picture)), export.description)
        return
    pixels = Image.fromarray(torch.cat(list(bands(picture))).numpy())
    path.write_bytes(encode_file(pixels, export.format, export.description))


def check_whole(format: str, size: tuple[int, int]) -> None:
    """Raise `SpecError` for a format that takes no picture as large as `size`."""
    height, width = size
    if format != "png" and height * width > LARGEST:
        raise SpecError(f"format: {format} is made for up to 8192x8192 pixels, not {width}x{height}; png has no limit")


def bands(picture: Picture) -> Iterator[Tensor]:
    """Yield the 8-bit pixels of a picture in bands of rows (rows, W, 3), from top to bottom."""
    height, width = picture.size
    edge = 4 * BAND  # a chunk's rows are read once
    for top in range(0, height, edge):
        held = picture.region((top, min(top + edge, height)), (0, width))
        for row in range(0, held.shape[2], BAND):
            yield to_levels(held[:, :, row : row + BAND])


def to_pixels(image: Tensor) -> Image.Image:
    """Return the 8-bit RGB picture of an image (1, 3, H, W) in [-1, 1]: values are clamped and rounded to nearest."""
    return Image.fromarray(to_levels(image).numpy())


def to_levels(image: Tensor) -> Tensor:
    """Return the 8-bit pixels (H, W, 3) of an image (1, 3, H, W) in [-1, 1], as `to_pixels` has them."""
    levels = ((image[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous()


def encode_file(picture: Image.Image, format: str, provenance: str) -> bytes:
    """Return the bytes of a lossless file in sRGB, with the provenance where the format keeps a description."""
    out = BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_itxt("freescale", provenance, zip=True)
        picture.save(out, "PNG", pnginfo=info, compress_level=6, icc_profile=SRGB)
    elif format == "tiff":
        tags = ImageFileDirectory_v2()
        tags[TIFF_DESCRIPTION] = provenance
        picture.save(out, "TIFF", compression="tiff_deflate", tiffinfo=tags, icc_profile=SRGB)
    else:
        exif = Image.Exif()
        exif[EXIF_DESCRIPTION] = provenance
        picture.save(out, "WEBP", lossless=True, exif=exif, icc_profile=SRGB)
    return out.getvalue()
