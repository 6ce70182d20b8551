"""The header of a file of tensors, read without a tensor: of safetensors, and of GGUF where that extra is installed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from stages.errors import SpecError
from stages.models.files.record import FileHeader
from stages.models.weights import PICKLED, Header, headers

if TYPE_CHECKING:
    from pathlib import Path

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}  # as bytes lie in a file
SUFFIXES = (".safetensors", ".sft", ".gguf")  # of files that are models


def read_header(path: Path, *, is_whole: bool = True) -> FileHeader:
    """Return the header of a file. Raises `SpecError` for one that is damaged or of another format.

    Without `is_whole` the header alone will do, which can be planned with.
    """
    check_format(path)
    if path.suffix.lower() == ".gguf":
        from stages.models.files.gguf import read_gguf

        return read_gguf(path)
    if is_whole:
        headers(path)  # what is wrong with a damaged file is said there
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length))
        metadata = {str(name): str(value) for name, value in (found.pop("__metadata__", None) or {}).items()}
        tensors = {name: Header(tuple(each["shape"]), str(each["dtype"])) for name, each in found.items()}
        offsets = {name: each["data_offsets"] for name, each in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        headers(path)
        raise SpecError(f"model: {path} has a damaged header; download it again") from None
    places = {name: (8 + length + int(begin), 8 + length + int(end)) for name, (begin, end) in offsets.items()}
    return FileHeader(path, tensors, places, metadata)


def check_format(path: Path) -> None:
    """Check that a file is of a format that is read as tensors alone. Raises `SpecError`."""
    if path.suffix.lower() in PICKLED:
        raise SpecError(
            f"model: {path} is a pickled checkpoint, which would have to be run to be read; "
            "the .safetensors file of the same model works"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(f"model: {path} is a {path.suffix or 'file without an ending'}; a {SUFFIXES[0]} file works")


def read_numbers(header: FileHeader, name: str) -> list[float] | None:
    """Return the numbers of one small tensor of a safetensors file; None where the file, or its header alone, has none.

    For what a header cannot say, such as the `global_step` of a training.
    """
    if name not in header.tensors or header.tensors[name].dtype not in NUMPY:
        return None
    begin, end = header.places[name]
    with header.path.open("rb") as file:
        file.seek(begin)
        given = file.read(end - begin)
    if len(given) < end - begin:
        return None
    kind = header.tensors[name].dtype
    found = np.frombuffer(given, NUMPY[kind])
    wide = (found.astype("<u4") << 16).view("<f4") if kind == "BF16" else found
    return [float(number) for number in wide.ravel()]
