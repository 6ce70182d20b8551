"""GGUF: a UNet in blocks of few bits, made into floats when it is loaded. Needs the extra `gguf`.

A checkpoint for pictures is little smaller in memory for it, since its convolutions stay as they are; what is saved is
the download. Shapes that the format cannot hold are in the metadata, as ComfyUI-GGUF writes them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from stages.errors import SpecError
from stages.models.files.record import FileHeader
from stages.models.weights import Header

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
MAGIC = b"GGUF"


def read_gguf(path: Path) -> FileHeader:
    """Return the header of a GGUF file. Raises `SpecError` for a damaged file, and where the extra is missing."""
    reader = _reader(path)
    tensors, places = dict[str, Header](), dict[str, tuple[int, int]]()
    for each in reader.tensors:
        tensors[each.name] = Header(_shape(reader, each), f"GGUF {each.tensor_type.name}")
        places[each.name] = (int(each.data_offset), int(each.data_offset + each.n_bytes))
    size, end = path.stat().st_size, max((end for _, end in places.values()), default=0)
    if size < end:
        raise SpecError(f"model: {path} is cut off: {size} of {end} bytes; download it again")
    metadata = {name: str(field.contents()) for name, field in reader.fields.items() if name.startswith("general.")}
    return FileHeader(path, tensors, places, metadata)


class GgufTensors:
    """The tensors of a GGUF file, each made into floats when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = _reader(path)
        self._tensors = {each.name: each for each in self._reader.tensors}
        self._last: tuple[str, Tensor] | None = None  # one tensor may hold several of a network's

    def get_tensor(self, name: str) -> Tensor:
        """Return one tensor in float32, or in float16 where it is stored so. Raises `KeyError`."""
        from gguf.quants import dequantize

        if self._last is not None and self._last[0] == name:
            return self._last[1]
        found = self._tensors[name]
        floats = found.data if found.data.dtype.kind == "f" else dequantize(found.data, found.tensor_type)
        self._last = name, torch.from_numpy(floats.copy()).reshape(_shape(self._reader, found))
        return self._last[1]


def _reader(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise SpecError(f"model: {path} is no GGUF file; download it again")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise SpecError(f"model: {path} needs the extra gguf; pip install 'gguf>=0.10' adds it") from None
    try:
        return GGUFReader(path)
    except Exception as error:  # of a damaged file, whatever the library meets
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpecError(f"model: {path} is damaged ({reason:.200}); download it again") from None


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    field = reader.fields.get(f"{ORIGINAL_SHAPE}{tensor.name}")
    shape = tuple(int(side) for side in (tensor.shape[::-1] if field is None else field.contents()))
    if math.prod(shape) != int(tensor.n_elements):
        raise SpecError(f"model: {tensor.name} has {tensor.n_elements} numbers, and its shape says {list(shape)}")
    return shape
