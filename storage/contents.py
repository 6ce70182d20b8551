"""A data folder: filled once under a fresh name, then completed, with every file in it listed and hashed.

Artifacts and checkpoints are both such folders; they differ in the record that is written afterwards.

    data/<uuid>/latents.zarr/…    an array, in Zarr's own files
    data/<uuid>/files/image.png   a file

`storage.arrays` and `storage.frames` bring torch and zarr, and are imported where an array is written or read: who
only looks a manifest up does not wait for them.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from storage.durable import digest, file_digest, flush_folder, make_folder, write_new
from storage.errors import DamagedArtifactError, InvalidNameError, explained
from storage.manifest import NAME, ArrayRecord, Contents, FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from storage.frames import Frames, Regions

FILES = "files"
C = TypeVar("C", bound=Contents)


def checked_name(name: str) -> str:
    """Return `name` if it may name an array or a file: one plain path component. Raises `InvalidNameError`."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise InvalidNameError(
            f"an array or file is named by letters, digits and `._-`, starting with one of the first two and "
            f"at most 120 long, not {name!r}."
        )
    return name


class ArrayInPieces(Protocol):
    """An array whose files were written piece by piece (`storage.pieces.Pieces`)."""

    folder: Path
    record: ArrayRecord

    @property
    def missing(self) -> list[int]:
        """The numbers of the pieces that are not written yet."""


class Draft:
    """A new data folder to which no record refers yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, ArrayRecord] = {}
        self._files: set[str] = set()
        with explained(folder):
            make_folder(folder.parent)
            folder.mkdir()

    def put(self, name: str, tensor: Tensor, axes: Sequence[str] | None = None) -> None:
        """Add an array; `axes` names its dimensions, for example "BChw" (see `storage.arrays`).

        Raises `InvalidNameError` for a name that is not allowed or was put before, and `ValueError` for a dtype that
        cannot be stored or axes that do not fit the shape.
        """
        from storage.arrays import write_array

        if checked_name(name) in self._arrays:
            raise InvalidNameError(f"array {name} was put before.")
        with explained(self.folder / name):
            self._arrays[name] = write_array(self.folder, name, tensor, axes)

    def put_pieces(self, name: str, pieces: ArrayInPieces) -> None:
        """Add an array that was written piece by piece, by hard links. Raises `ValueError` where a piece is missing."""
        from storage.arrays import file_names

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
        """Return the folder of the files, made if it is missing, to write files there that do not fit in memory."""
        folder = self.folder / FILES
        with explained(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def put_file(self, name: str, data: bytes) -> None:
        """Add a file of these bytes. Raises `InvalidNameError` for a name that is not allowed or was put before."""
        path = self.folder / FILES / checked_name(name)
        if path.exists():
            raise InvalidNameError(f"file {name} was put before.")
        with explained(path):
            path.parent.mkdir(exist_ok=True)
            write_new(path, data)
        self._files.add(f"{FILES}/{name}")

    def complete(self, record: C) -> C:
        """Flush all that was put to the disk and return `record` with all its names and hashes.

        Raises `DamagedArtifactError` if a file is gone: another process has deleted the folder as a leftover.
        """
        from storage.arrays import file_names

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
    """Compare size and hash of every file. The first that differs raises `DamagedArtifactError`."""
    for name, record in contents.files.items():
        with _present(folder / name):
            found = file_digest(folder / name)
        _compare(folder / name, record, *found)


def read_tensors(folder: Path, contents: Contents) -> dict[str, Tensor]:
    """Return all arrays of `contents` by name, after `check`. Raises `DamagedArtifactError`."""
    from storage.arrays import read_array

    check(folder, contents)
    try:
        with explained(folder):
            return {name: read_array(folder, record) for name, record in contents.arrays.items()}
    except Exception:
        check(folder, contents)  # did the bytes change since? If not, this is no damage and the error stands
        raise


def open_frames(folder: Path, contents: Contents) -> dict[str, Frames]:
    """Return all arrays of `contents`, each a video (B, C, F, H, W) to be read by frames, after `check`.

    A frame is checked by its crc32c again when it is read.
    """
    from storage.frames import Frames

    check(folder, contents)
    with explained(folder):
        return {name: Frames(folder, record) for name, record in contents.arrays.items()}


def open_pictures(folder: Path, contents: Contents) -> dict[str, Regions]:
    """Return all arrays of `contents`, each a picture (B, C, H, W) to be read by regions, after `check`."""
    from storage.frames import Regions

    check(folder, contents)
    with explained(folder):
        return {name: Regions(folder, record) for name, record in contents.arrays.items()}


def checked_path(folder: Path, contents: Contents, name: str) -> Path:
    """Return the path of the file `name` of `contents`, after its size and hash were compared.

    Raises `DamagedArtifactError`, and `KeyError` if there is no such file.
    """
    record, path = contents.files[f"{FILES}/{name}"], folder / FILES / name
    with _present(path):
        found = file_digest(path)
    _compare(path, record, *found)
    return path


def read_bytes(folder: Path, contents: Contents, name: str) -> bytes:
    """Return the bytes of the file `name` of `contents`, checked.

    Raises `DamagedArtifactError`, and `KeyError` if there is no such file.
    """
    record, path = contents.files[f"{FILES}/{name}"], folder / FILES / name
    with _present(path):
        data = path.read_bytes()
    _compare(path, record, len(data), digest(data))
    return data


@contextmanager
def _present(path: Path) -> Iterator[None]:
    """Report a missing file as damage, and explain what the operating system refuses."""
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
