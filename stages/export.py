"""Picture -> a file a person can open, with the spec embedded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from stages.stage import Parents, Stage, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from freescale import Step
    from stages.models import Models
    from stages.spec import RunOptions

SUFFIXES = {"png": ".png", "tiff": ".tiff", "webp": ".webp"}
TIFF_DESCRIPTION, EXIF_DESCRIPTION = 270, 0x010E


@dataclass(frozen=True)
class Export(Stage):
    """The file `picture.<format>` of a level's image. It carries `provenance`: the spec, level and model, as JSON."""

    name = "export"
    version = 1

    format: str
    provenance: str

    @property
    def file_name(self) -> str:
        """What the picture's file is called in the artifact."""
        return f"picture{SUFFIXES[self.format]}"

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """The digest of the 8-bit pixels, as {"pixels_sha256": 32 bytes}."""
        digest = hashlib.sha256(to_pixels(parents["image"]["image"]).tobytes()).digest()
        return {"pixels_sha256": torch.frombuffer(bytearray(digest), dtype=torch.uint8)}

    def files(self, parents: Parents) -> dict[str, bytes]:
        """{"picture.png": its bytes}, lossless in every format."""
        return {self.file_name: encode_file(to_pixels(parents["image"]["image"]), self.format, self.provenance)}


def to_pixels(image: Tensor) -> Image.Image:
    """(1, 3, H, W) in [-1, 1] -> an 8-bit RGB picture; values outside are clamped, the rest rounded to nearest."""
    levels = ((image[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def encode_file(picture: Image.Image, format: str, provenance: str) -> bytes:
    """Encode losslessly with the provenance in the format's own place for a description."""
    out = BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_itxt("freescale", provenance, zip=True)
        picture.save(out, "PNG", pnginfo=info, compress_level=6)
    elif format == "tiff":
        tags = ImageFileDirectory_v2()
        tags[TIFF_DESCRIPTION] = provenance
        picture.save(out, "TIFF", compression="tiff_deflate", tiffinfo=tags)
    else:
        exif = Image.Exif()
        exif[EXIF_DESCRIPTION] = provenance
        picture.save(out, "WEBP", lossless=True, exif=exif)
    return out.getvalue()
