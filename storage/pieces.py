"""Arrays that are written piece by piece: a frame of a video, or a band of a picture, is kept as soon as it is whole.

    steps/<key>/<uuid>/image.zarr/…              Zarr's own files, as the artifact will have them
    steps/<key>/<uuid>/pieces/image-000012.json  which of them are piece 12, with their hashes; written after them

A piece counts if its record is whole and its files are as the record says; any other is made again. No piece waits
for the disk: `flush` is called now and then. Each attempt has a folder of its own, into which it links what earlier
ones left, so that a process that was stopped, lost the lease and goes on does no harm. An artifact takes the finished
array by links.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from storage.arrays import chunk_names, create_array, from_bits, to_bits
from storage.contents import check
from storage.durable import digest, file_digest, flush_file, flush_folder, make_folder
from storage.errors import DamagedArtifactError, UnsupportedFormatError, explained
from storage.frames import AXES, PICTURE_AXES
from storage.manifest import FileRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from storage.checkpoints import Checkpoints

log = logging.getLogger(__name__)

PIECE_AXIS = 2  # along which an array is cut into pieces: F of a video, H of a picture


class Unfinished:
    """What attempts at one stage call have made of its arrays, for the holder of its lease.

    Its length is the number of pieces found. All of it is deleted when the call's checkpoints are cleared.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._found: dict[tuple[str, int], StepRecord] = {}
        self._arrays: dict[str, Pieces] = {}
        self._fresh: set[str] = set()  # files that a power cut may take
        for name in checkpoints.leftovers():
            self._take_over(name)

    def __len__(self) -> int:
        return len(self._found)

    @cached_property
    def folder(self) -> Path:
        """The folder of this attempt alone."""
        folder = self._checkpoints.folder / self._checkpoints.claim()
        with explained(folder):
            return make_folder(folder)

    def array(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Pieces:
        """Return an array to be filled, with what was found of it: a video (B, C, F, H, W) or a picture (B, C, H, W).

        Raises `ValueError` for a dtype that cannot be stored.
        """
        if name not in self._arrays:
            self._arrays[name] = Pieces(self, name, shape, dtype)
        return self._arrays[name]

    def found(self, array: str, layout: str) -> set[int]:
        """Return the numbers of the pieces found of an array; none if it was laid out otherwise."""
        return {index for (name, index), record in self._found.items() if name == array and _layout(record) == layout}

    def keep(self, array: str, index: int, layout: str, files: Sequence[str]) -> None:
        """Record that these files are piece `index`. `layout` is the hash of the array's description, `zarr.json`."""
        with explained(self.folder):
            hashes = {name: file_digest(self.folder / name) for name in files}
        self._note(
            StepRecord(
                key=self._checkpoints.key,
                step=index,
                meta={"array": array, "layout": layout},
                files={name: FileRecord(size=size, blake2b=blake2b) for name, (size, blake2b) in hashes.items()},
                data=self.folder.name,
                created=datetime.now(UTC),
            )
        )

    def flush(self) -> None:
        """Make all that was put survive a power cut and, in a bucket, visible to other machines."""
        names = sorted(self._fresh)
        if not names:
            return
        with explained(self.folder):
            for name in names:
                flush_file(self.folder / name)
            above = {folder for name in names for folder in (self.folder / name).parents}
            for folder in sorted((one for one in above if one.is_relative_to(self.folder)), reverse=True):
                flush_folder(folder)
        self._checkpoints.backend.keep(f"{self._checkpoints.name}/{self.folder.name}", names)
        self._fresh.clear()

    def _take_over(self, earlier: str) -> None:
        """Link the intact pieces that another attempt left."""
        where = f"{self._checkpoints.name}/{earlier}"
        records = list(self._records(where))
        source = self._checkpoints.backend.fetch(where, {n: f for record in records for n, f in record.files.items()})
        for record in records:
            if _piece(record) in self._found:
                continue
            targets = {name: self.folder / name for name in record.files}
            try:
                with explained(self.folder):
                    for name, target in targets.items():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        os.link(source / name, target)
                check(self.folder, record)
            except (DamagedArtifactError, FileNotFoundError) as damage:
                log.warning("piece %d of %s is made again: %s", record.step, record.meta["array"], damage)
                for target in targets.values():
                    target.unlink(missing_ok=True)
                continue
            self._found[_piece(record)] = record
            self._note(record.revised(data=self.folder.name))

    def _records(self, where: str) -> Iterator[StepRecord]:
        """Return the intact records of a folder: those of the backend, and those that are only on this machine."""
        backend, pattern = self._checkpoints.backend, f"{where}/pieces/*.json"
        here = {path.relative_to(backend.root).as_posix() for path in backend.root.glob(pattern)}
        for name in sorted({*here, *backend.names(pattern)}):
            try:
                record = StepRecord.from_bytes(
                    (backend.root / name).read_bytes() if name in here else backend.get(name)
                )
            except (ValueError, FileNotFoundError, UnsupportedFormatError) as error:
                log.warning("%s is skipped: %s", backend.where(name), error)
                continue
            if record.key == self._checkpoints.key:
                yield record

    def _note(self, record: StepRecord) -> None:
        array, index = _piece(record)
        name = f"pieces/{array}-{index:06d}.json"
        with explained(self.folder / name):
            (self.folder / "pieces").mkdir(exist_ok=True)
            (self.folder / name).write_bytes(record.to_bytes())
        self._fresh |= {name, *record.files}


class Pieces(Mapping[int, "Tensor"]):
    """An array as a mapping of numbers to the pieces that are there.

    A piece is a frame (B, C, H, W) of a video, or a band (B, C, rows, W) of a picture, as high as its chunks.
    """

    def __init__(self, unfinished: Unfinished, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.folder, self.name = unfinished.folder, name
        axes = AXES if len(shape) == len(AXES) else PICTURE_AXES
        with explained(self.folder / name):
            self._array, self.record = create_array(self.folder, name, shape, dtype, axes)
            self._layout = digest((self.folder / self.record.path / "zarr.json").read_bytes())
        self._is_video, self._dtype = axes == AXES, dtype
        self._unfinished, self._there = unfinished, unfinished.found(name, self._layout)

    @property
    def missing(self) -> list[int]:
        """The numbers of the pieces that are still to be made, in order."""
        count = math.ceil(self.record.shape[PIECE_AXIS] / self.record.chunks[PIECE_AXIS])
        return [index for index in range(count) if index not in self._there]

    def put(self, index: int, piece: Tensor) -> None:
        """Write a piece. Raises `ValueError` for a number, shape or dtype that is none of this array's."""
        whole = piece.unsqueeze(PIECE_AXIS) if self._is_video else piece
        span, shape = self._span(index), self.record.shape
        wanted = (*shape[:PIECE_AXIS], span.stop - span.start, *shape[PIECE_AXIS + 1 :])
        if index < 0 or tuple(whole.shape) != wanted or piece.dtype != self._dtype:
            raise ValueError(f"{self.name}: piece {index} is {tuple(piece.shape)} {piece.dtype}, of {shape}")
        with explained(self.folder / self.name):
            self._array[:, :, span] = to_bits(whole)
        self._unfinished.keep(self.name, index, self._layout, list(chunk_names(self.record, PIECE_AXIS, index)))
        self._there.add(index)

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._there:
            raise KeyError(index)
        found = from_bits(np.array(self._array[:, :, self._span(index)]), self.record)
        return found.squeeze(PIECE_AXIS) if self._is_video else found

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._there))

    def __len__(self) -> int:
        return len(self._there)

    def _span(self, index: int) -> slice:
        edge, size = self.record.chunks[PIECE_AXIS], self.record.shape[PIECE_AXIS]
        return slice(index * edge, min((index + 1) * edge, size))


def _piece(record: StepRecord) -> tuple[str, int]:
    return str(record.meta.get("array")), record.step


def _layout(record: StepRecord) -> str:
    return str(record.meta.get("layout"))
