"""Videos read one frame at a time, pictures read by regions; neither is ever whole in memory.

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
    """A stored video (B, C, F, H, W): its length is F, and its items are the frames (B, C, H, W), from 0 to F - 1.

    Raises `ValueError` if the array in `folder` is not as `record` says.
    """

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
    """A stored picture (B, C, H, W), read by regions; only the chunks that a region touches are in memory.

    Raises `ValueError` if the array in `folder` is not as `record` says.
    """

    def __init__(self, folder: Path, record: ArrayRecord) -> None:
        self.shape, self.dtype = record.shape, record.dtype
        self._array = zarr.open_array(store=str(folder / record.path), mode="r")
        found = (self._array.shape, self._array.dtype.name, tuple(record.axes))
        if found != (record.shape, record.stored, tuple(PICTURE_AXES)) or record.dtype != record.stored:
            raise ValueError(f"{record.path} is {found}, not a picture as recorded")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.shape[2], self.shape[3]

    def region(self, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        """Return (B, C, rows, columns) of two spans in pixels, each (first, one past the last)."""
        return torch.from_numpy(np.array(self._array[:, :, slice(*rows), slice(*columns)]))

    def whole(self) -> torch.Tensor:
        """Return the whole picture (B, C, H, W)."""
        return self.region((0, self.size[0]), (0, self.size[1]))
