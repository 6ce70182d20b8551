"""Networks that enlarge pictures, from a local file, through `spandrel` (the extra `upscalers`).

spandrel knows ESRGAN, Real-ESRGAN, SPAN, DAT, HAT and many others by the names of their tensors. Only safetensors are
read, since other files may run code. A network of a few megabytes is loaded to be checked, before any work.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import SpecError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class UpscalerFile:
    """A file that was checked: its absolute path and the sha256 of its content; empty: none."""

    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Upscaler:
    """A network (1, 3, h, w) -> (1, 3, scale * h, scale * w) in [0, 1]; `by_tiles`: parts of a picture will do."""

    network: Callable[[Tensor], Tensor]
    scale: int
    by_tiles: bool


def find_upscaler(given: str | None, root: Path | None) -> UpscalerFile:
    """Return the file under `root` (None: the working folder), after loading it once. Raises `SpecError`.

    Where none is given, path and hash are empty.
    """
    if given is None:
        return UpscalerFile()
    path = (root or Path()).absolute() / os.path.expanduser(given)
    if path.suffix.lower() != SUFFIX:
        raise SpecError(f"method.upscaler: {given!r} is not a {SUFFIX} file, and others may run code; convert it")
    if not path.is_file():
        raise SpecError(f"method.upscaler: {path} is not on disk")
    found = UpscalerFile(str(path), _sha256(path))
    load_upscaler(found, "cpu")
    return found


@lru_cache(maxsize=2)
def load_upscaler(file: UpscalerFile, device: str) -> Upscaler:
    """Return the network of a checked file on a device, in float32.

    Raises `SpecError` without spandrel and for a file that has no network which enlarges three channels, `StageError`
    for one that has changed since it was checked.
    """
    path = Path(file.path)
    try:
        import spandrel
    except ImportError:
        raise SpecError("method.upscaler: needs the extra upscalers; pip install 'spandrel>=0.4' adds it") from None
    if _sha256(path) != file.sha256:
        raise StageError(f"the upscaler {path} has changed since it was checked; render again")
    try:
        found = spandrel.ModelLoader(device).load_from_file(path)
    except Exception as error:  # of the file's reader or of an architecture
        raise SpecError(
            f"method.upscaler: {path} has no network that spandrel knows ({type(error).__name__})"
        ) from None
    is_image = isinstance(found, spandrel.ImageModelDescriptor) and found.purpose == "SR"
    if not is_image or (found.input_channels, found.output_channels) != (3, 3) or found.scale < 2:
        raise SpecError(f"method.upscaler: {path} is a {found.architecture.name}, which does not enlarge RGB pictures")
    found.model.float().eval().requires_grad_(False)
    return Upscaler(found, found.scale, found.tiling == spandrel.ModelTiling.SUPPORTED)


def _sha256(path: Path) -> str:
    """The hash of a file's content, read anew: two files of one size may be written within a tick of the clock."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
