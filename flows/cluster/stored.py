"""A tensor in a file of the home, which every process of the machine maps where it reads it."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from storage.errors import explained

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its path, shape and dtype. Only this is sent between processes, not the values."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def put(cls, values: Tensor, folder: Path) -> Stored:
        """Write a tensor of the CPU to a new file in `folder`. Raises `StoreFullError` where the disk has no room."""
        path = folder / uuid.uuid4().hex
        with explained(path), path.open("xb") as out:
            out.write(values.contiguous().numpy().data)
        return cls(path, tuple(values.shape), values.dtype)

    def open(self) -> Tensor:
        """The tensor, mapped: it is read as far as it is used, also after the file was deleted."""
        size = math.prod(self.shape)
        return torch.from_file(str(self.path), shared=False, size=size, dtype=self.dtype).view(self.shape)
