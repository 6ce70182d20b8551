"""Arrays in the making: a frame of a video, or a band of a picture, is kept as soon as it is whole.

    steps/<key>/<uuid>/image.zarr/…              Zarr's own files, as the artifact will have them
    steps/<key>/<uuid>/pieces/image-000012.json  which of them are piece 12, with their hashes; written after them

A piece counts where its record is whole and its files are as that says; what is torn is made again. No piece waits for
the disk: `flush` is for now and then. Each attempt has a folder of its own, into which it links what earlier ones left,
so that a process that was stopped, lost the lease and goes on does no harm. An artifact takes the whole by links.
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

AXIS = 2  # along which there are pieces: F of a video, H of a picture


class Unfinished:
    """What attempts at one stage call have made of its arrays; for the holder of its lease. Its length: pieces found.

    All of it goes when the call's checkpoints are cleared.
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
        """This attempt's own."""
        folder = self._checkpoints.folder / self._checkpoints.claim()
        with explained(folder):
            return make_folder(folder)

    def array(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Pieces:
        """An array to be filled, with what was found of it: a video (B, C, F, H, W) or a picture (B, C, H, W)."""
        if name not in self._arrays:
            self._arrays[name] = Pieces(self, name, shape, dtype)
        return self._arrays[name]

    def found(self, array: str, layout: str) -> set[int]:
        """The pieces found of an array, unless it was laid out otherwise."""
        return {index for (name, index), record in self._found.items() if name == array and _layout(record) == layout}

    def keep(self, array: str, index: int, layout: str, files: Sequence[str]) -> None:
        """From here on these files are a piece. `layout` is the hash of the array's own description."""
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
        """From here on all that was put survives a power cut and, in a bucket, is there for other machines."""
        names = sorted(self._fresh)
        if not names:
            return
        with explained(self.folder):
            for name in names:
                flush_file(self.folder / name)
            above = {folder for name in names for folder in (self.folder / name).parents}
            for folder in sorted((one for one in above if one.is_relative_to(self.folder)), reverse=True):
                flush_folder(folder)
        self._checkpoints.place.keep(f"{self._checkpoints.name}/{self.folder.name}", names)
        self._fresh.clear()

    def _take_over(self, earlier: str) -> None:
        """Link what another attempt left and verifies."""
        where = f"{self._checkpoints.name}/{earlier}"
        records = list(self._records(where))
        source = self._checkpoints.place.fetch(where, {n: f for record in records for n, f in record.files.items()})
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
        """The records of a folder that are whole, of the place and of those that are only here yet."""
        place, pattern = self._checkpoints.place, f"{where}/pieces/*.json"
        here = {path.relative_to(place.root).as_posix() for path in place.root.glob(pattern)}
        for name in sorted({*here, *place.names(pattern)}):
            try:
                record = StepRecord.from_bytes((place.root / name).read_bytes() if name in here else place.get(name))
            except (ValueError, FileNotFoundError, UnsupportedFormatError) as error:
                log.warning("%s is passed over: %s", place.where(name), error)
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
    """An array and its pieces that are there: frames (B, C, H, W), or bands (B, C, rows, W) as high as its chunks."""

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
        """Those that are still to be made, in order."""
        count = math.ceil(self.record.shape[AXIS] / self.record.chunks[AXIS])
        return [index for index in range(count) if index not in self._there]

    def put(self, index: int, piece: Tensor) -> None:
        """Write a piece. Raises `ValueError` for what is none of this array."""
        whole = piece.unsqueeze(AXIS) if self._is_video else piece
        span, shape = self._span(index), self.record.shape
        wanted = (*shape[:AXIS], span.stop - span.start, *shape[AXIS + 1 :])
        if index < 0 or tuple(whole.shape) != wanted or piece.dtype != self._dtype:
            raise ValueError(f"{self.name}: piece {index} is {tuple(piece.shape)} {piece.dtype}, of {shape}")
        with explained(self.folder / self.name):
            self._array[:, :, span] = to_bits(whole)
        self._unfinished.keep(self.name, index, self._layout, list(chunk_names(self.record, AXIS, index)))
        self._there.add(index)

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._there:
            raise KeyError(index)
        found = from_bits(np.array(self._array[:, :, self._span(index)]), self.record)
        return found.squeeze(AXIS) if self._is_video else found

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._there))

    def __len__(self) -> int:
        return len(self._there)

    def _span(self, index: int) -> slice:
        edge, size = self.record.chunks[AXIS], self.record.shape[AXIS]
        return slice(index * edge, min((index + 1) * edge, size))


def _piece(record: StepRecord) -> tuple[str, int]:
    return str(record.meta.get("array")), record.step


def _layout(record: StepRecord) -> str:
    return str(record.meta.get("layout"))
