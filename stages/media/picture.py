"""Pictures from outside: a source to start from, and masks. Checked before any work, then kept by content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from stages.errors import SpecError
from stages.media.decode_picture import Decoded, PictureError, decode
from stages.spec import GRAIN, MIN_SIDE
from stages.stage import Cost, Networks, Parents, Size, Stage, Tensors, not_in_key, picture_cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

MAX_BYTES = 512 * 2**20
MAX_DIFFERENCE = 0.03  # of the aspects of a picture and of what is asked for; so much is stretched


@dataclass(frozen=True)
class LoadPicture(Stage):
    """{"picture": (H, W, C) uint8}: RGB, or one grey channel for a mask; identified by the file's sha256."""

    name = "picture"
    axes: ClassVar[Mapping[str, str]] = {"picture": "HWC"}

    digest: str
    mode: str  # "RGB" or "L"
    path: str = not_in_key("")
    remarks: tuple[str, ...] = not_in_key(())  # on the picture, for people

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Decode the file, which must still be the one that was checked."""
        picture = self.decoded()
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return {"picture": pixels.reshape(picture.height, picture.width, -1)}

    def decoded(self) -> Image.Image:
        """Return the picture in the file. Raises `SpecError` where it is not the one that was checked."""
        data = _bytes("picture", Path(self.path))
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise SpecError(f"picture: {self.path} has changed since the render was planned")
        decoded = _decoded("picture", self.path, data, self.mode)
        if decoded.converted != isinstance(self, ConvertPicture):
            raise SpecError(f"picture: {self.path} is read in another way since the run was planned; render it again")
        return decoded.picture

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """Return the cost of a picture on the host."""
        return picture_cost(source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Return the bytes of the 8-bit levels of a picture as large as the level."""
        return 3 * size[0] * size[1]


@dataclass(frozen=True)
class ConvertPicture(LoadPicture):
    """A picture whose levels are not those of its file: turned, flattened, or converted to sRGB.

    Versions that took the levels as they are made another result of such a file; this one has keys of its own.
    """

    variant = 1


@dataclass(frozen=True)
class CheckedPicture:
    """A picture that was opened, measured and read to its end, now or when the run was planned that names it."""

    path: Path
    digest: str
    size: tuple[int, int] | None = None  # (height, width), upright; None: it was checked when its run was planned
    converted: bool = False
    remarks: tuple[str, ...] = ()

    def loading(self, mode: str) -> LoadPicture:
        """The stage that reads it again."""
        kind = ConvertPicture if self.converted else LoadPicture
        return kind(self.digest, mode, str(self.path), self.remarks)


def check_picture(field: str, path: str, root: Path | None = None, mode: str = "RGB") -> CheckedPicture:
    """Read a picture through once; `mode` is `L` for a mask. Raises `SpecError` naming the field for what is not one.

    With `root` given, a path that leads outside it (also by a link) is refused.
    """
    if "\0" in path:
        raise SpecError(f"{field}: {path!r} is not a path: it holds a zero byte")
    try:
        found = Path(path).expanduser()
        resolved = (root / found if root is not None else found).resolve()
    except (RuntimeError, OSError) as error:  # a home that is nobody's; links that lead to each other
        raise SpecError(f"{field}: {path!r} leads nowhere: {error}") from None
    if root is not None and not resolved.is_relative_to(root.resolve()):
        raise SpecError(f"{field}: {path!r} leads outside the allowed folder {root}")
    data = _bytes(field, resolved)
    decoded = _decoded(field, path, data, mode)
    size = (decoded.picture.height, decoded.picture.width)
    remarks = tuple(f"{field}: {path!r} {remark}" for remark in decoded.remarks)
    return CheckedPicture(resolved, hashlib.sha256(data).hexdigest(), size, decoded.converted, remarks)


def check_aspect(field: str, path: str, picture: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse a picture whose aspect differs from that of `size` by more than `MAX_DIFFERENCE`; both (height, width)."""
    (h, w), (target_h, target_w) = picture, size
    if abs(w * target_h / (h * target_w) - 1) > MAX_DIFFERENCE:
        nearest = max(round(target_w * h / w / GRAIN) * GRAIN, MIN_SIDE)
        raise SpecError(
            f"{field}: {path!r} is {w}x{h}, of another aspect than {target_w}x{target_h}, the size asked for; "
            f"crop it, or ask for {target_w}x{nearest}"
        )


def _decoded(field: str, path: str, data: bytes, mode: str) -> Decoded:
    try:
        return decode(data, mode)
    except PictureError as error:
        raise SpecError(f"{field}: {path!r} {error}") from None


def _bytes(field: str, path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SpecError(f"{field}: {str(path)!r} is a folder; name a picture in it")
        if not path.is_file():
            raise SpecError(f"{field}: {str(path)!r} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{field}: {str(path)!r} is larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{field}: {str(path)!r} cannot be read: {error.strerror}") from None
