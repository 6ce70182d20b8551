"""Tensors as Zarr v3 arrays: bit-exact, every chunk with a crc32c, with chunks chosen for those who read them.

Axes are named by single letters: B, C, F (frames), h and w (latent cells), H and W (pixels); others are free.
Zarr has no bfloat16, so its bits are stored as uint16 and the attribute `dtype` says what is meant. Chunks of
zeros are written like any other: a missing file reads as zeros, so none may be missing by design.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from storage.manifest import ArrayRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import dask.array
    from torch import Tensor

ONE_CHUNK_BYTES = 8 << 20  # an array without pixels is one chunk up to here: 2 files, written in half the time
CHUNK_EDGE_CELLS = 256  # of a larger array of latents; one such tile is read in 0.8 ms instead of 5
CHUNK_EDGE_PIXELS = 1024  # aligned with the tiles of the VAE
DTYPES = (
    *("bool", "uint8", "uint16", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
)


def chunk_shape(shape: Sequence[int], itemsize: int, axes: Sequence[str]) -> tuple[int, ...]:
    """Return the chunk shape for an array of `shape`; chunks are chosen here alone.

    A video has a chunk for each frame, a picture squares of pixels. Latents are one chunk up to 8 MiB, else squares of
    cells (video latents: a chunk for each frame). Other axes are never cut.
    """
    is_pixels = "H" in axes and "W" in axes
    if not is_pixels and math.prod(shape) * itemsize <= ONE_CHUNK_BYTES:
        edges: dict[str, int] = {}
    elif "F" in axes:
        edges = {"F": 1}
    else:
        edges = {"h": CHUNK_EDGE_CELLS, "w": CHUNK_EDGE_CELLS, "H": CHUNK_EDGE_PIXELS, "W": CHUNK_EDGE_PIXELS}
    return tuple(max(1, min(size, edges.get(axis, size))) for size, axis in zip(shape, axes, strict=True))


def write_array(folder: Path, name: str, tensor: Tensor, axes: Sequence[str] | None = None) -> ArrayRecord:
    """Write `tensor` to `folder/name.zarr` and return its record. Nothing is flushed here.

    `axes` has one name for each dimension, for example "BCHW"; without it the tensor is one chunk. Errors as for
    `create_array`.
    """
    names = tuple(axes) if axes is not None else tuple(f"axis{i}" for i in range(tensor.ndim))
    array, record = create_array(folder, name, tensor.shape, tensor.dtype, names)
    array[...] = to_bits(tensor)
    return record


def create_array(
    folder: Path, name: str, shape: Sequence[int], dtype: torch.dtype, axes: Sequence[str]
) -> tuple[zarr.Array[Any], ArrayRecord]:
    """Return a new array to be filled wholly, and its record. bfloat16 is filled with its bits as uint16.

    Raises `ValueError` for a dtype that cannot be stored, or another number of axes than dimensions.
    """
    meant, names = str(dtype).removeprefix("torch."), tuple(axes)
    if meant not in DTYPES:
        raise ValueError(f"{name} has dtype {meant}; what can be stored is {', '.join(DTYPES)}.")
    if len(names) != len(shape):
        raise ValueError(f"{name} has shape {tuple(shape)} but axes {names}; give one name each.")
    stored = np.dtype("uint16" if meant == "bfloat16" else meant)
    chunks = chunk_shape(shape, stored.itemsize, names)
    crc = Crc32cCodec()
    array: zarr.Array[Any] = zarr.create_array(
        store=str(folder / f"{name}.zarr"),
        shape=tuple(shape),
        chunks=chunks,
        dtype=stored,
        compressors=(ZstdCodec(level=0), crc) if "H" in names and "W" in names else (crc,),
        dimension_names=names,
        attributes={"dtype": meant},
        config={"write_empty_chunks": True},
    )
    record = ArrayRecord(
        path=f"{name}.zarr",
        shape=tuple(shape),
        dtype=meant,
        stored=stored.name,
        axes=names,
        chunks=chunks,
    )
    return array, record


def file_names(record: ArrayRecord) -> Iterator[str]:
    """Yield the files of an array. All of them must be there: a missing chunk reads as zeros."""
    yield f"{record.path}/zarr.json"
    yield from chunk_names(record)


def chunk_names(record: ArrayRecord, axis: int = 0, index: int | None = None) -> Iterator[str]:
    """Yield the files of an array's chunks: all of them, or those that are number `index` along `axis`."""
    counts = (math.ceil(size / edge) for size, edge in zip(record.shape, record.chunks, strict=True))
    spans = [range(count) for count in counts]
    if index is not None:
        spans[axis] = range(index, index + 1)
    for chunk in itertools.product(*spans):
        yield "/".join((record.path, "c", *map(str, chunk)))


def read_array(folder: Path, record: ArrayRecord) -> Tensor:
    """Return the tensor of `record`, bit for bit. Raises `ValueError` if the array is not as recorded."""
    array = zarr.open_array(store=str(folder / record.path), mode="r")
    found = (array.shape, array.dtype.name, array.attrs.get("dtype"))
    if found != (record.shape, record.stored, record.dtype):
        raise ValueError(f"{record.path} is {found}, not as recorded")
    return from_bits(np.array(array[...]), record)


def open_dask(path: Path) -> dask.array.Array:
    """Return the array at `path` (`….zarr`) as a lazy dask array of its stored dtype, chunk by chunk.

    For arrays larger than memory. A chunk is checked by its crc32c alone, when it is read; bfloat16 values are read as
    their bits.
    """
    import dask.array  # slow to import, and few need it

    lazy: dask.array.Array = dask.array.from_zarr(str(path))  # type: ignore[no-untyped-call]
    return lazy


def to_bits(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the values of `tensor` as a NumPy array, bfloat16 as its bits in uint16."""
    held = tensor.detach().cpu().contiguous()
    return (held.view(torch.uint16) if held.dtype == torch.bfloat16 else held).numpy()


def from_bits(bits: np.ndarray[Any, np.dtype[Any]], record: ArrayRecord) -> Tensor:
    """Return the tensor of stored values: any part of the array of `record`."""
    held = torch.from_numpy(bits)
    return held.view(torch.bfloat16) if record.dtype == "bfloat16" else held
