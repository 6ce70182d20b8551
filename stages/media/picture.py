"""Pictures from outside: a source to start from, and masks. Checked before any work, then kept by content."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from PIL import Image

from stages.errors import SpecError
from stages.stage import Cost, Networks, Parents, Size, Stage, Tensors, not_in_key, picture_cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

MAX_PIXELS = 64 * 2**20  # an 8192 x 8192 picture; more is taken for a bomb
MAX_BYTES = 512 * 2**20
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")


@dataclass(frozen=True)
class LoadPicture(Stage):
    """{"picture": (H, W, C) uint8}: RGB, or one grey channel for a mask; identified by the file's sha256."""

    name = "picture"
    axes: ClassVar[Mapping[str, str]] = {"picture": "HWC"}

    digest: str
    mode: str  # "RGB" or "L"
    path: str = not_in_key("")

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Decode the file, which must still be the one that was checked."""
        data = _bytes("picture", Path(self.path))
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise SpecError(f"picture: {self.path} has changed since the render was planned")
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            pixels = torch.frombuffer(bytearray(picture.convert(self.mode).tobytes()), dtype=torch.uint8)
            return {"picture": pixels.reshape(picture.height, picture.width, -1)}

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """Return the cost of a picture on the host."""
        return picture_cost(source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Return the bytes of the 8-bit levels of a picture as large as the level."""
        return 3 * size[0] * size[1]


@dataclass(frozen=True)
class CheckedPicture:
    """A picture that was opened, measured and read to its end."""

    path: Path
    digest: str
    size: tuple[int, int]  # (height, width)


def check_picture(field: str, path: str, root: Path | None = None) -> CheckedPicture:
    """Read a picture through once. Raises `SpecError` naming the field for anything that is not one.

    With `root` given, a path that leads outside it (also by a link) is refused.
    """
    if "\0" in path:
        raise SpecError(f"{field}: {path!r} is not a path: it holds a zero byte")
    found = Path(os.path.expanduser(path))
    resolved = (root / found if root is not None else found).resolve()
    if root is not None and not resolved.is_relative_to(root.resolve()):
        raise SpecError(f"{field}: {path!r} leads outside the allowed folder {root}")
    data = _bytes(field, resolved)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise SpecError(f"{field}: {path!r} is {width}x{height}, over the limit of {MAX_PIXELS} pixels")
                picture.load()
    except SpecError:
        raise
    except Exception as error:  # Pillow raises many kinds for hostile or truncated files
        raise SpecError(f"{field}: {path!r} is not a whole picture ({', '.join(FORMATS)}): {error}") from None
    return CheckedPicture(resolved, hashlib.sha256(data).hexdigest(), (height, width))


def check_aspect(field: str, picture: CheckedPicture, size: tuple[int, int]) -> None:
    """Refuse a picture whose aspect differs from the target's by more than 3 %."""
    (h, w), (target_h, target_w) = picture.size, size
    if abs(w * target_h / (h * target_w) - 1) > 0.03:
        raise SpecError(f"{field}: {w}x{h} has another aspect than {target_w}x{target_h}; crop it first")


def _bytes(field: str, path: Path) -> bytes:
    try:
        if not path.is_file():
            raise SpecError(f"{field}: {str(path)!r} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{field}: {str(path)!r} is larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{field}: {str(path)!r} cannot be read: {error.strerror}") from None
