"""Model files by name: which files lie in the home and in linked folders, and which of them a name means."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import SpecError, cause, nearest
from stages.models.linked_folders import OWN, FileKind, KindFolder, folders_of, linked_folders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

log = logging.getLogger(__name__)
MODEL_INDEX = "model_index.json"  # of a folder that is one model
NO_MODELS = ("metrics", "measures")  # folders below the home's models with networks of other kinds
ENDINGS: Mapping[FileKind, tuple[str, ...]] = {
    "model": (".safetensors", ".gguf", ".ckpt", ".sft"),
    "lora": (".safetensors", ".pt", ".ckpt", ".sft"),
    "embedding": (".safetensors", ".pt", ".bin"),
    "vae": (".safetensors", ".pt", ".ckpt", ".sft"),
    "text_encoder": (".safetensors", ".gguf", ".sft"),
}
EVERY_ENDING = tuple(dict.fromkeys(ending for endings in ENDINGS.values() for ending in endings))


@dataclass(frozen=True)
class LibraryFile:
    """One file, or one folder of a model. `kind` is None in a linked folder whose layout does not say it."""

    kind: FileKind | None
    name: str  # its path below its folder, with `/` between the parts
    path: Path


def find(kind: FileKind, name: str, home: Path) -> Path:
    """Return the file that a name means: its path, or its name or relative path in a folder, with or without ending.

    A file at the path `name` comes first. Then the home's folder of this kind and the linked folders are searched, in
    them also folders below; then folders of other kinds for a file that is of this one by what it holds, such as a VAE
    beside its model. Raises `SpecError` for a name that no file has, with the nearest, or that two files have.
    """
    given = Path(os.path.expanduser(name))
    if _is_one(given):
        return given
    if given.is_absolute() or name.startswith((".", "~")):
        raise SpecError(f"{kind}: {name!r} is not a file")
    candidates = list(library_files(home, kind))
    hits = named(kind, name, candidates) or _elsewhere(kind, name, home)
    if not hits:
        raise SpecError(_not_found(kind, name, home, candidates))
    if len(hits) > 1:
        first, second, *more = sorted(each.path for each in hits)
        others = f" (and {len(more)} more)" if more else ""
        raise SpecError(
            f"{kind}: {name!r} is the name of {first} and of {second}{others}; give the path of one of them"
        )
    return hits[0].path


def named(kind: FileKind, name: str, files: Iterable[LibraryFile]) -> list[LibraryFile]:
    """Return those of the files that a name or a relative path means, with or without ending."""
    wanted = name.replace("\\", "/")
    return [each for each in files if _means(wanted, each, kind) and _is_kind(each, kind)]


def _elsewhere(kind: FileKind, name: str, home: Path) -> list[LibraryFile]:
    """The files that a name means in folders of other kinds, and that are of this kind by what they hold."""
    from stages.models.file_marks import describe_file

    wanted = name.replace("\\", "/")
    others = [each for each in library_files(home) if each.kind not in (None, kind) and _means(wanted, each, kind)]
    return [each for each in others if describe_file(each.path).kind == kind]


def library_files(home: Path, kind: FileKind | None = None) -> Iterator[LibraryFile]:
    """Yield the files of a kind in the home and in linked folders, by name in each folder; None: of every kind.

    A file that two linked folders lead to comes once. Files are told by where they lie and by their endings alone.
    """
    seen: set[str] = set()
    for folder in folders_of(home):
        if kind is None or folder.kind in (None, kind):
            skip = NO_MODELS if folder.path == home / OWN["model"] else ()
            for each in _files(folder, skip):
                if (real := os.path.realpath(each.path)) not in seen:
                    seen.add(real)
                    yield each


def _files(folder: KindFolder, skip: tuple[str, ...]) -> Iterator[LibraryFile]:
    """The files below a folder; links are followed, each folder once. A folder with a model index is one file."""
    endings = EVERY_ENDING if folder.kind is None else ENDINGS[folder.kind]
    visited: set[str] = set()
    for where, folders, files in os.walk(folder.path, onerror=_unread, followlinks=True):
        here = Path(where)
        if (real := os.path.realpath(here)) in visited:
            folders.clear()
            continue
        visited.add(real)
        if folder.kind in (None, "model") and MODEL_INDEX in files and here != folder.path:
            folders.clear()
            yield LibraryFile("model", here.relative_to(folder.path).as_posix(), here)
            continue
        hidden = skip if here == folder.path else ()
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each not in hidden)
        for name in sorted(files):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield LibraryFile(folder.kind, (here / name).relative_to(folder.path).as_posix(), here / name)


def _unread(error: OSError) -> None:
    """Tell of a folder that cannot be read; one that is not there holds nothing."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        log.warning("%s cannot be read, so its files are not found: %s", error.filename, cause(error))


def without_ending(name: str, kind: FileKind | None = None) -> str:
    """Return the name of a file without the ending of weights, if it has one: `a.b.safetensors` is `a.b`."""
    endings = EVERY_ENDING if kind is None else ENDINGS[kind]
    return next((name[: -len(each)] for each in endings if name.lower().endswith(each)), name)


def _means(wanted: str, file: LibraryFile, kind: FileKind) -> bool:
    """Whether a name is that of a file: all of its path or the last parts, with or without ending."""
    return any(f"/{each}".endswith(f"/{wanted}") for each in (file.name, without_ending(file.name, kind)))


def _is_kind(file: LibraryFile, kind: FileKind) -> bool:
    """Whether a file that may be of any kind is of this one, by what it holds; a damaged one is left to its reader."""
    if file.kind is not None:
        return file.kind == kind
    from stages.models.file_marks import describe_file

    marks = describe_file(file.path)
    return marks.kind == kind or not marks.what  # damaged, or pickled


def _is_one(path: Path) -> bool:
    return os.path.isfile(path) or os.path.isfile(path / MODEL_INDEX)


def _not_found(kind: FileKind, name: str, home: Path, files: list[LibraryFile]) -> str:
    names = [without_ending(each.name, kind) for each in files]
    near = nearest(without_ending(name, kind), [*(each.rpartition("/")[2] for each in names), *names])
    folders = linked_folders(home)
    gone = [str(each) for each in folders if not each.exists()]
    linked = "" if not folders else f" nor in the {len(folders)} linked folders (`freescale models` lists them)"
    missing = f"; the linked folder {gone[0]} is not there" if gone else ""
    return (
        f"{kind}: {name!r} is not a file, nor the name of one under {home / OWN[kind]}{linked}"
        f"{f'; the nearest is {near!r}' if near else ''}{missing}; put the file there, or give its path"
    )
