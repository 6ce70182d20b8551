"""Which files of this machine a picture means: by hash where it has one, else by name, and said which of the two."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from stages.errors import SpecError, cause
from stages.models.file_hashes import FileHashes, old_hash
from stages.models.file_marks import read_metadata
from stages.models.folder import EMBEDDED_MODELS
from stages.models.library import find, library_files, named, without_ending
from stages.models.linked_folders import OWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.picture_import.recipe import NamedFile
    from stages.models.library import LibraryFile
    from stages.models.linked_folders import FileKind

DIGITS = re.compile("[0-9a-fA-F]{8,64}")  # of a hash
OLD_DIGITS = 8


@dataclass(frozen=True)
class FoundFile:
    """A file that a picture names: its name in a spec, and how it was found (None: it is missing)."""

    wanted: NamedFile
    name: str
    path: Path | None = None
    how: str | None = None


class Finder:
    """Looks for files in the home and in linked folders.

    A file with the wanted name is hashed where the picture has a hash; with `hash_all`, every file of its kind is.
    """

    def __init__(self, home: Path, hash_all: bool, told: Callable[[str], None] = lambda text: None) -> None:
        self.home, self.hash_all, self.told = home, hash_all, told
        self.hashes = FileHashes(home)
        self._files: dict[FileKind, list[LibraryFile]] = {}

    def find(self, wanted: NamedFile) -> FoundFile:
        """Return the file that is meant, or the wanted name without a path. Raises `SpecError` for a damaged home."""
        if wanted.kind == "model" and wanted.name in EMBEDDED_MODELS:
            return FoundFile(wanted, wanted.name, EMBEDDED_MODELS[wanted.name], "in the package")
        if os.path.isabs(wanted.name) and os.path.exists(wanted.name):
            return FoundFile(wanted, wanted.name, Path(wanted.name), "at its path")
        files = self._of(wanted.kind)
        stem = PurePosixPath(without_ending(wanted.name.replace("\\", "/"), wanted.kind)).name
        by_name = named(wanted.kind, wanted.name, files) or named(wanted.kind, stem, files)
        if DIGITS.fullmatch(wanted.digits):
            others = [each for each in files if each not in by_name]
            for each in (*by_name, *others):
                if self._has(each, wanted, read=self.hash_all or each in by_name):
                    return FoundFile(wanted, self._name(each), each.path, f"by its hash {wanted.digits}")
        if len(by_name) == 1:
            unlike = f" alone: its hash does not begin with {wanted.digits}, so it may be another version"
            unlike = unlike if wanted.digits else ""
            return FoundFile(wanted, self._name(by_name[0]), by_name[0].path, f"by its name{unlike}")
        if by_name:
            both = " and ".join(str(each.path) for each in by_name[:2])
            return FoundFile(wanted, wanted.name, None, f"its name is that of {both}")
        return FoundFile(wanted, wanted.name)

    def _of(self, kind: FileKind) -> list[LibraryFile]:
        if kind not in self._files:
            self._files[kind] = list(library_files(self.home, kind))
        return self._files[kind]

    def _has(self, file: LibraryFile, wanted: NamedFile, *, read: bool) -> bool:
        """Whether a hash of the file begins as wanted; without `read`, by what is known without reading it whole."""
        if not file.path.is_file():
            return False
        try:
            digits = wanted.digits.lower()
            # Trainers write the hash of the tensors into a LoRA's header, and A1111 takes it from there.
            if wanted.kind == "lora" and _trained_hash(file.path).startswith(digits):
                return True
            if len(digits) == OLD_DIGITS and wanted.kind == "model" and old_hash(file.path) == digits:
                return True
            found = self.hashes.known(file.path)
            if found is None and read:
                self.told(f"reads {file.path} for its hash")
                found = self.hashes.of(file.path)
        except OSError as error:
            self.told(f"{file.path} cannot be read: {cause(error)}")
            return False
        return found is not None and found.begins(wanted.digits)

    def _name(self, file: LibraryFile) -> str:
        """What a spec calls the file: its name in the library where that is clear, else its path.

        Embeddings have names in the home's folder alone.
        """
        if file.kind == "embedding" and not file.path.is_relative_to(self.home / OWN["embedding"]):
            return str(file.path.absolute())
        assert file.kind is None or file.kind in self._files
        for kind in self._files if file.kind is None else (file.kind,):
            try:
                if find(kind, file.name, self.home).samefile(file.path):
                    return file.name
            except (SpecError, OSError):
                continue
        return str(file.path.absolute())


def _trained_hash(path: Path) -> str:
    """The hash of its tensors that a trainer wrote into a LoRA's header; empty where there is none."""
    try:
        return read_metadata(path).get("sshs_model_hash", "").lower()
    except SpecError:
        return ""
