"""Videos one frame at a time, pictures by regions: read as they are wanted, never held whole.

Their arrays are as in `storage.arrays`: of a video axes "BCFHW", a chunk for each frame; of a picture "BCHW", squares.
`storage.pieces` writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import zarr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.manifest import ArrayRecord

AXES = "BCFHW"
FRAME_AXIS = AXES.index("F")
PICTURE_AXES = "BCHW"


class Frames:
    """A stored video (B, C, F, H, W): its length is F, and its items are the frames, (B, C, H, W)."""

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


class Regions:
    """A stored picture (B, C, H, W), read by regions; no more than the chunks that one touches is in memory."""

    def __init__(self, folder: Path, record: ArrayRecord) -> None:
        self.shape, self.dtype = record.shape, record.dtype
        self._array = zarr.open_array(store=str(folder / record.path), mode="r")
        found = (self._array.shape, self._array.dtype.name, tuple(record.axes))
        if found != (record.shape, record.stored, tuple(PICTURE_AXES)) or record.dtype != record.stored:
            raise ValueError(f"{record.path} is {found}, not a picture as recorded")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.shape[2], self.shape[3]

    def region(self, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        """(B, C, rows, columns) of two spans, [first, one past the last)."""
        return torch.from_numpy(np.array(self._array[:, :, slice(*rows), slice(*columns)]))

    def whole(self) -> torch.Tensor:
        """All of it."""
        return self.region((0, self.size[0]), (0, self.size[1]))
