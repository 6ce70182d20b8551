"""A data folder: filled once under a fresh name, then sealed, with every file in it listed and hashed.

Artifacts and checkpoints are both such folders; they differ in the record that is put in place afterwards.

    data/<uuid>/latents.zarr/…    an array, in Zarr's own files
    data/<uuid>/files/image.png   a file
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from storage.arrays import file_names, read_array, write_array
from storage.durable import digest, file_digest, flush_folder, make_folder, write_new
from storage.errors import DamagedArtifactError, InvalidNameError, explained
from storage.frames import Frames, Regions
from storage.manifest import NAME, ArrayRecord, Contents, FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from storage.pieces import Pieces

FILES = "files"
C = TypeVar("C", bound=Contents)


def checked_name(name: str) -> str:
    """Return `name` if it may name an array or a file: one plain path component, not starting with a dot."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise InvalidNameError(
            f"an array or file is named by letters, digits and `._-`, starting with one of the first two and "
            f"at most 120 long, not {name!r}."
        )
    return name


class Draft:
    """A new folder that nobody refers to yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, ArrayRecord] = {}
        self._files: set[str] = set()
        with explained(folder):
            make_folder(folder.parent)
            folder.mkdir()

    def put(self, name: str, tensor: Tensor, axes: Sequence[str] | None = None) -> None:
        """Add an array; `axes` names its dimensions, for example "BChw" (see `storage.arrays`)."""
        if checked_name(name) in self._arrays:
            raise InvalidNameError(f"array {name} was put before.")
        with explained(self.folder / name):
            self._arrays[name] = write_array(self.folder, name, tensor, axes)

    def put_pieces(self, name: str, pieces: Pieces) -> None:
        """Add an array that was made piece by piece, by links. Raises `ValueError` where a piece is missing."""
        if checked_name(name) in self._arrays:
            raise InvalidNameError(f"array {name} was put before.")
        if pieces.missing:
            raise ValueError(f"{name} lacks {len(pieces.missing)} of its pieces, the first of them {pieces.missing[0]}")
        with _present(self.folder / name):
            for file in file_names(pieces.record):
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.link(pieces.folder / file, self.folder / file)
        self._arrays[name] = pieces.record

    def files_folder(self) -> Path:
        """The folder of the files, for whoever writes one that is too large to hold."""
        folder = self.folder / FILES
        with explained(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def put_file(self, name: str, data: bytes) -> None:
        """Add a file."""
        path = self.folder / FILES / checked_name(name)
        if path.exists():
            raise InvalidNameError(f"file {name} was put before.")
        with explained(path):
            path.parent.mkdir(exist_ok=True)
            write_new(path, data)
        self._files.add(f"{FILES}/{name}")

    def complete(self, record: C) -> C:
        """Flush all that was put to the disk and return `record` with the list of it and all hashes.

        Raises `DamagedArtifactError` if any of it is gone: another process has taken the folder for a leftover.
        """
        files = {}
        with _present(self.folder):
            for path in sorted(self.folder.rglob("*"), reverse=True):  # a folder after its files
                if path.is_dir():
                    flush_folder(path)
                else:
                    size, blake2b = file_digest(path, flush=True)
                    files[path.relative_to(self.folder).as_posix()] = FileRecord(size=size, blake2b=blake2b)
            flush_folder(self.folder)
            flush_folder(self.folder.parent)
        put = {name for array in self._arrays.values() for name in file_names(array)} | self._files
        if lost := put - files.keys():
            raise DamagedArtifactError(f"{self.folder / min(lost)} is missing: it was deleted since it was put.")
        return record.revised(arrays=self._arrays, files=files)

    def discard(self) -> None:
        """Delete the folder, as far as that is possible."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check(folder: Path, contents: Contents) -> None:
    """Compare size and hash of every file; the first that differs raises `DamagedArtifactError`."""
    for name, record in contents.files.items():
        with _present(folder / name):
            found = file_digest(folder / name)
        _compare(folder / name, record, *found)


def read_tensors(folder: Path, contents: Contents) -> dict[str, Tensor]:
    """Return all arrays of `contents`, after `check`."""
    check(folder, contents)
    try:
        with explained(folder):
            return {name: read_array(folder, record) for name, record in contents.arrays.items()}
    except Exception:
        check(folder, contents)  # did the bytes change since? If not, this is no damage and the error stands
        raise


def open_frames(folder: Path, contents: Contents) -> dict[str, Frames]:
    """Return all arrays of `contents`, each a video, to be read frame by frame, after `check`.

    A frame is checked by its crc32c once more when it is read.
    """
    check(folder, contents)
    with explained(folder):
        return {name: Frames(folder, record) for name, record in contents.arrays.items()}


def open_pictures(folder: Path, contents: Contents) -> dict[str, Regions]:
    """Return all arrays of `contents`, each a picture, to be read by regions, after `check`."""
    check(folder, contents)
    with explained(folder):
        return {name: Regions(folder, record) for name, record in contents.arrays.items()}


def checked_path(folder: Path, contents: Contents, name: str) -> Path:
    """Return where the file `name` of `contents` lies, after its size and hash were compared."""
    record, path = contents.files[f"{FILES}/{name}"], folder / FILES / name
    with _present(path):
        found = file_digest(path)
    _compare(path, record, *found)
    return path


def read_bytes(folder: Path, contents: Contents, name: str) -> bytes:
    """Return the file `name` of `contents`, checked; `KeyError` if there is none."""
    record, path = contents.files[f"{FILES}/{name}"], folder / FILES / name
    with _present(path):
        data = path.read_bytes()
    _compare(path, record, len(data), digest(data))
    return data


@contextmanager
def _present(path: Path) -> Iterator[None]:
    """Call a missing file damage, and explain what the operating system refuses."""
    try:
        with explained(path):
            yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedArtifactError(f"{path} is missing: {error.strerror}.") from error


def _compare(path: Path, record: FileRecord, size: int, blake2b: str) -> None:
    if size != record.size:
        raise DamagedArtifactError(f"{path} has {size} bytes, not the {record.size} it was committed with.")
    if blake2b != record.blake2b:
        raise DamagedArtifactError(f"{path} differs from its checksum.")
