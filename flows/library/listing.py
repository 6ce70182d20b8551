"""One row for every model file that can be named: what it is, whom it goes with, its hashes, its trigger words.

A file that is damaged is a row with its reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError, cause
from stages.models.file_hashes import AUTO_V2, AUTO_V3, FileHashes
from stages.models.file_marks import DTYPES, describe_file
from stages.models.library import MODEL_INDEX, library_files, without_ending
from stages.models.linked_folders import KINDS, folders_in, linked_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flows.home import Home
    from stages.models.file_marks import FileMarks
    from stages.models.library import LibraryFile

OTHER = "other"  # the kind of a file that no field of a spec takes


@dataclass(frozen=True)
class Row:
    """One model, or one file. What is not known is empty or None; `error` says why a file cannot be used."""

    kind: str
    name: str
    path: str
    what: str = ""  # LoHa, UNet alone
    family: str = ""
    prediction: str = ""
    native: str = ""  # WIDTHxHEIGHT
    frames: int | None = None
    steps: int = 0
    dtype: str = ""
    bytes: int | None = None
    sha256: str = ""  # of the file
    tensors_sha256: str = ""  # of the bytes after the header
    triggers: tuple[str, ...] = ()
    why: str = ""
    error: str | None = None

    @property
    def short_hash(self) -> str:
        """The first digits of the file's sha256, as A1111 and Civitai show them; of the tensors' if it is unknown."""
        return self.sha256[:AUTO_V2] or (f"{self.tensors_sha256[:AUTO_V3]} (AutoV3)" if self.tensors_sha256 else "")

    def as_json(self) -> dict[str, Any]:
        """The row for a script; `folder` is what `path` was called."""
        short = {"autov2": self.sha256[:AUTO_V2], "autov3": self.tensors_sha256[:AUTO_V3]}
        return {**asdict(self), **short, "folder": self.path}


def rows(home: Home, hash_all: bool, told: Callable[[str], None] = lambda text: None) -> Iterator[Row]:
    """Yield the models that are folders, then every file by kind. With `hash_all`, files are hashed that were not yet.

    `told` is called with a line before a large file is read.
    """
    from stages.models.folder import available

    names = set()
    for name, folder in available(home.root):
        if folder.is_dir():
            names.add(folder.resolve())
            yield _folder_row(home, name, str(folder))
    hashes = FileHashes(home.root)
    files = [each for each in library_files(home.root) if each.path.resolve() not in names]
    found = [_row(home, each, hashes, hash_all, told) for each in files]
    order = (*KINDS, OTHER)
    yield from sorted(found, key=lambda row: (order.index(row.kind), row.name.lower()))
    for folder in linked_folders(home.root):
        if not folders_in(folder):
            yield Row("linked folder", folder.name, str(folder), error="it is not there; `freescale models remove` it")


def _folder_row(home: Home, name: str, folder: str) -> Row:
    """A model that is a folder, checked as a render does it."""
    from stages.models.fields import read_json
    from stages.models.folder import EMBEDDED_MODELS, describe
    from stages.spec import ModelSpec

    try:
        info = describe(ModelSpec(name=name if name in EMBEDDED_MODELS else folder), home.root)
    except SpecError as error:
        return Row("model", name, folder, error=str(error))
    height, width = info.native
    prediction = str(info.scheduler.get("prediction_type", ""))
    return Row(
        "model",
        name,
        folder,
        prediction=prediction,
        native=f"{width}x{height}",
        frames=info.frames,
        steps=info.steps,
        what=str(read_json(info.folder / MODEL_INDEX)["_class_name"]),
        why=f"{MODEL_INDEX} says so",
    )


def _row(home: Home, file: LibraryFile, hashes: FileHashes, hash_all: bool, told: Callable[[str], None]) -> Row:
    """A file, described by its header; where it lies says its kind if the header does not."""
    if file.path.is_dir():
        return _folder_row(home, file.name, str(file.path))
    marks = _probed(file.path, describe_file(file.path))
    kind = marks.kind or (file.kind if marks.error or not marks.what else OTHER)
    name = without_ending(file.name)
    try:
        size = file.path.stat().st_size
        if hash_all and size > 2**30 and hashes.known(file.path) is None:
            told(f"reads {file.path} ({size / 2**30:.1f} GiB) for its hash")
        found = hashes.of(file.path) if hash_all else hashes.known(file.path)
    except OSError as error:
        return Row(kind or OTHER, name, str(file.path), error=f"cannot be read: {cause(error)}")
    why = marks.why
    if file.kind is not None and marks.kind is not None and marks.kind != file.kind:
        why += f"; it lies in a folder of the kind {file.kind}"
    return Row(
        kind or OTHER,
        name,
        str(file.path),
        what=marks.what,
        family=marks.family,
        prediction=marks.prediction,
        native="" if marks.native is None else f"{marks.native[1]}x{marks.native[0]}",
        dtype=marks.dtype,
        bytes=size,
        sha256=found.file if found else "",
        tensors_sha256=found.tensors if found and not marks.error else marks.tensors_sha256,
        triggers=marks.triggers or ((Path(name).name,) if kind == "embedding" else ()),
        why=why,
        error=marks.error,
    )


def _probed(path: Path, marks: FileMarks) -> FileMarks:
    """The marks of a checkpoint as a render sees it, with what it refuses as an error."""
    from stages.models.files.header import read_header
    from stages.models.files.probe import probe
    from stages.models.files.transformers import transformer_of

    if marks.kind != "model":
        return marks
    try:
        header = read_header(path)
        if (found := transformer_of(header.tensors)) is not None and found.network is not None:
            why = f"it has names of {found.name}; --config gives the diffusers folder that it needs"
            return replace(marks, family=found.name, why=why)
        info = probe(header)
    except SpecError as error:
        return replace(marks, error=str(error).removeprefix(f"model: {path} "))
    return replace(
        marks,
        family=info.member,
        prediction=info.prediction or "",
        native=info.native,
        dtype=DTYPES.get(info.dtype, info.dtype),
        why="; ".join(info.why),
    )
