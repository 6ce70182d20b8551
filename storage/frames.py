"""Clips one frame at a time: written as they are made, read as they are wanted, so that memory holds one frame.

The arrays are those of `storage.arrays`, axes "BCFHW", a chunk for each frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import zarr

from storage.arrays import create_array, to_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from storage.manifest import ArrayRecord

AXES = "BCFHW"
FRAME_AXIS = AXES.index("F")


class Frames:
    """A stored clip (B, C, F, H, W): its length is F, and its items are the frames, (B, C, H, W)."""

    def __init__(self, folder: Path, record: ArrayRecord) -> None:
        self.shape, self.dtype = record.shape, record.dtype
        self._array = zarr.open_array(store=str(folder / record.path), mode="r")
        found = (self._array.shape, self._array.dtype.name, tuple(record.axes))
        if found != (record.shape, record.stored, tuple(AXES)) or record.dtype != record.stored:
            raise ValueError(f"{record.path} is {found}, not frames as recorded")

    def __len__(self) -> int:
        return self.shape[FRAME_AXIS]

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} is not one of 0 to {len(self) - 1}")
        return torch.from_numpy(np.array(self._array[:, :, index]))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))


def write_frames(
    folder: Path, name: str, shape: Sequence[int], dtype: torch.dtype, frames: Iterable[torch.Tensor]
) -> ArrayRecord:
    """Write `frames`, each (B, C, H, W), to `folder/name.zarr` as a clip of `shape`; return its record."""
    array, record = create_array(folder, name, shape, dtype, AXES)
    count = 0
    for frame in frames:
        if frame.dtype != dtype or tuple(frame.shape) != (*shape[:FRAME_AXIS], *shape[FRAME_AXIS + 1 :]):
            raise ValueError(f"{name}: frame {count} is {tuple(frame.shape)} {frame.dtype}, of a clip {tuple(shape)}")
        array[:, :, count] = to_bits(frame)
        count += 1
    if count != shape[FRAME_AXIS]:
        raise ValueError(f"{name} got {count} frames, not {shape[FRAME_AXIS]}")
    return record
