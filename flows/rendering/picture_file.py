"""Whether a picture file is one that a run would write: the same spec is in it, and it has the same pixels."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from stages.export import EXIF_DESCRIPTION, TIFF_DESCRIPTION, Export

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stages.stage import Stage


def holds(path: Path, stage: Stage, digest: bytes | None) -> bool:
    """Whether the file at `path` holds the picture of an export, with pixels of this sha256 (None: any pixels).

    A file that cannot be read as a picture, and one that Pillow holds for too large to read, holds none.
    """
    if not isinstance(stage, Export):
        return False
    try:
        with _strict(), Image.open(path) as picture:
            if _description(picture) not in (stage.description, stage.provenance):  # the latter in older files
                return False
            return digest is None or hashlib.sha256(picture.convert("RGB").tobytes()).digest() == digest
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return False


@contextmanager
def _strict() -> Iterator[None]:
    """Raise warnings as errors in the body, such as Pillow's of a picture with very many pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _description(picture: Image.Image) -> str | None:
    """The spec that a file carries, as `stages.export.encode_file` wrote it."""
    if picture.format == "PNG":
        found = picture.info.get("freescale")
    else:
        found = picture.getexif().get(TIFF_DESCRIPTION if picture.format == "TIFF" else EXIF_DESCRIPTION)
    return found if found is None else str(found)
