"""Readings of evaluations in a small file, so that a table can grow over several nights and several machines.

A safetensors file holds each reading under its key in the store, which covers the picture it was taken of: weights,
seed, method. What is in the file is put into the store before the work begins, so that
its picture is neither rendered nor read again; what the store holds of the evaluation is added to the file afterwards,
and nothing is ever taken out of it. Renders and what they cost stay where they were made.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stages.errors import SpecError
from stages.runner import writing
from storage import ArtifactNotFoundError, DamagedArtifactError, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from flows.evaluate.layout import Evaluation
    from stages.call import Call
    from storage import ArtifactStore

FORMAT = {"format": "freescale readings", "version": "1"}
NAME = re.compile(r"[0-9a-f]{64}/[a-z_]{1,32}")  # fingerprint and array


@dataclass(frozen=True)
class ReadingsFile:
    """Files of readings. The first of `paths` is read and added to, and may be new; the others are only read.

    Raises `SpecError` where a path cannot be what it is given as.
    """

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        """Raise `SpecError`, before any work, for a path that is not a readings file and cannot become one."""
        for path in self.paths:
            if path.exists():
                self._check(path)
            elif path != self.paths[0]:
                raise SpecError(f"readings: {str(path)!r} is not there; only the first file may be new")
            elif not path.parent.is_dir():
                raise SpecError(f"readings: {str(path.parent)!r} is not a folder; make it first")

    def keys(self) -> set[str]:
        """Return the fingerprints of all readings in the files."""
        found: set[str] = set()
        for path in self._there():
            with safe_open(path, "pt") as file:
                found.update(_by_key(file.keys()))
        return found

    def take(self, evaluation: Evaluation, store: ArtifactStore) -> int:
        """Put into `store` those readings of `evaluation` that it lacks; return their number."""
        missing = {call.key: call for call in _readings(evaluation) if store.find(call.key) is None}
        taken = 0
        for path in self._there():
            with safe_open(path, "pt") as file:
                for key, names in _by_key(file.keys()).items():
                    if (call := missing.pop(key, None)) is not None:
                        _commit(path, call, {name: file.get_tensor(f"{key}/{name}") for name in names}, store)
                        taken += 1
        return taken

    def add(self, evaluation: Evaluation, store: ArtifactStore) -> None:
        """Write the readings of `evaluation` that the store has to the first file, whole or not at all.

        Of two processes that add at the same time one may lose; its readings stay in its store and are added the next
        time.
        """
        if not self.paths:
            return
        path = self.paths[0]
        tensors = load_file(path) if path.exists() else {}
        held = _by_key(tensors)
        for key in (call.key for call in _readings(evaluation)):
            if key not in held:
                with suppress(ArtifactNotFoundError, DamagedArtifactError):  # not made, or to be made again
                    tensors |= {f"{key}/{name}": tensor.contiguous() for name, tensor in store.read(key).items()}
        with whole_file(path) as partial:
            save_file(tensors, partial, FORMAT)

    def _there(self) -> list[Path]:
        return [path for path in self.paths if path.exists()]

    def _check(self, path: Path) -> None:
        if path.is_dir():
            raise SpecError(f"readings: {str(path)!r} is a folder; name a file in it")
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata() or {}, file.keys()
        except (OSError, SafetensorError) as error:
            raise SpecError(f"readings: {str(path)!r} is no safetensors file: {error}") from None
        if metadata.get("format") != FORMAT["format"]:
            raise SpecError(f"readings: {str(path)!r} holds no readings; such a file is made by --readings")
        if metadata.get("version") != FORMAT["version"]:
            raise SpecError(f"readings: {str(path)!r} is of version {metadata.get('version')!r}, known: 1")
        if strange := next((name for name in names if NAME.fullmatch(name) is None), None):
            raise SpecError(f"readings: {str(path)!r} holds {strange!r}, which is no reading")


def _readings(evaluation: Evaluation) -> Iterator[Call]:
    return (call for picture in evaluation.pictures for call in picture.readings.values())


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    """The arrays of each reading."""
    found: dict[str, list[str]] = {}
    for name in names:
        key, _, array = name.partition("/")
        found.setdefault(key, []).append(array)
    return found


def _commit(path: Path, call: Call, arrays: dict[str, Tensor], store: ArtifactStore) -> None:
    """Make one reading an artifact. Raises `SpecError` where it is not what its stage gives."""
    axes = call.stage.axes
    for name, array in arrays.items():
        if name not in axes or array.ndim != len(axes[name]) or not array.isfinite().all():
            what = f"{name} {tuple(array.shape)} {str(array.dtype).removeprefix('torch.')}"
            raise SpecError(f"readings: {str(path)!r} holds {what} for {call.stage.name}, which gives something else")
    with writing(store, call) as writer:
        for name, array in arrays.items():
            writer.put(name, array, call.stage.axes_of(name, array.ndim))
