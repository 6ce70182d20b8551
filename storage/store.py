"""The content-addressed store: an artifact exists once its manifest does, and a manifest is made last.

    data/<uuid>/               arrays and files, under a fresh name, flushed
    manifests/<k2>/<key>.json  what is in there, with a hash of every file; made exclusively: the commit
    steps/<key>/               checkpoints (`storage.checkpoints`)
    locks/<key>.lock           leases
    trash/                     what was found damaged (`storage.trash`)

All of it lies in a backend (`storage.backend`): a folder, or a bucket with copies in a folder.

A crash before the commit leaves a data folder that nothing refers to: readers never see it, and a sweep may
delete it. A key says what a result is made from: two writers of one key write the same, and either may win.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from storage.backend import backend_of
from storage.contents import FILES, Draft, check, checked_path, open_frames, open_pictures, read_bytes, read_tensors
from storage.errors import ArtifactNotFoundError, DamagedArtifactError, StorageError, StoreAccessError
from storage.fingerprint import KEY, checked_key
from storage.manifest import Manifest
from storage.trash import move_to_trash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from storage.backend import Backend
    from storage.frames import Frames, Regions

log = logging.getLogger(__name__)


class Writer(Draft):
    """An artifact that is being written. After the `with`, `manifest` is the stored one: ours or a faster writer's."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder)
        self.manifest = manifest

    def describe(
        self,
        *,
        device: str | None = None,
        libraries: Mapping[str, str] | None = None,
        seconds: float | None = None,
        resumed_at: Sequence[int] = (),
        peak_memory: int | None = None,
        savings: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Record how the artifact was made: what does not decide its bytes (fields as in `Manifest`)."""
        self.manifest = self.manifest.revised(
            device=device,
            libraries=dict(libraries or {}),
            seconds=seconds,
            resumed_at=tuple(resumed_at),
            peak_memory=peak_memory,
            savings=tuple(savings),
            counts=dict(counts or {}),
        )


class ArtifactStore:
    """Finished stage results, each under the fingerprint of all that decides its bytes.

    `where` is a backend, or the path of a folder. `root` is the backend's local folder: the store itself, or the local
    copies of a bucket. Methods raise `InvalidNameError` for what is no key, and `StoreAccessError` where the bytes
    cannot be reached.
    """

    def __init__(self, where: Path | str | Backend) -> None:
        self.backend = backend_of(where)
        self.root = self.backend.root

    def find(self, key: str) -> Manifest | None:
        """Return the manifest of a committed artifact, or None if there is none. `read` checks the data."""
        try:
            with self._guarded(key) as manifest:
                return manifest
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None

    def read(self, key: str) -> dict[str, Tensor]:
        """Return all arrays of an artifact by name, after every byte of it was checked.

        Raises `ArtifactNotFoundError`. A damaged artifact is moved to `trash/` and raises `DamagedArtifactError`;
        `find` then returns None.
        """
        with self._guarded(key) as manifest:
            return read_tensors(self._fetched(manifest), manifest)

    def open_frames(self, key: str) -> dict[str, Frames]:
        """Return the videos (B, C, F, H, W) of an artifact, to be read by frames, after every byte of it was checked.

        Errors as for `read`.
        """
        with self._guarded(key) as manifest:
            return open_frames(self._fetched(manifest), manifest)

    def open_pictures(self, key: str) -> dict[str, Regions]:
        """Return the pictures (B, C, H, W) of an artifact, to be read by regions, after every byte of it was checked.

        Errors as for `read`.
        """
        with self._guarded(key) as manifest:
            return open_pictures(self._fetched(manifest), manifest)

    def file_path(self, key: str, name: str) -> Path:
        """Return the path of one file of an artifact, checked, to be copied from. Errors as for `read`."""
        with self._guarded(key) as manifest:
            if f"{FILES}/{name}" not in manifest.files:
                raise ArtifactNotFoundError(f"artifact {key} holds no file {name!r}.")
            return checked_path(self._fetched(manifest), manifest, name)

    def read_file(self, key: str, name: str) -> bytes:
        """Return the bytes of one file of an artifact, checked. Errors as for `read`."""
        with self._guarded(key) as manifest:
            if f"{FILES}/{name}" not in manifest.files:
                raise ArtifactNotFoundError(f"artifact {key} holds no file {name!r}.")
            return read_bytes(self._fetched(manifest), manifest, name)

    @contextmanager
    def writing(
        self,
        key: str,
        *,
        stage: str,
        version: int,
        level: int | None = None,
        params: Mapping[str, Any] | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> Iterator[Writer]:
        """Fill an artifact in the body of the `with`; a clean exit commits it.

        When the body or the commit raises, nothing of it is left. If another writer was faster, its artifact stays and
        this copy is deleted. `params` hold what JSON can (lists, no tuples).
        """
        manifest = Manifest(
            key=checked_key(key),
            stage=stage,
            version=version,
            level=level,
            params=dict(params or {}),
            parents=dict(parents or {}),
            data=uuid.uuid4().hex,
            created=datetime.now(UTC),
        )
        writer = Writer(self.folder(manifest), manifest)
        try:
            yield writer
            writer.manifest = self._commit(writer)
        except BaseException:
            self._retract(writer)
            raise

    def lease(
        self, key: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Hold the right to make `key` for the body of the `with`; call `find` again once it is held.

        The right ends with the process. A second worker waits here until the first is done, dead or silent. Arguments
        and errors as for `storage.locks.lease`.
        """
        return self.backend.lease(checked_key(key), on_wait=on_wait, timeout=timeout)

    def verify(self, key: str) -> str | None:
        """Return a sentence about what is damaged in an artifact, or None; nothing is moved."""
        try:
            manifest = self._parse(key, self._raw(key))
            check(self._fetched(manifest), manifest)
        except DamagedArtifactError as damage:
            return str(damage)
        return None

    def list_keys(self) -> list[str]:
        """Return the keys of all committed artifacts, sorted."""
        stems = (name.rpartition("/")[2].removesuffix(".json") for name in self.backend.names("manifests/??/*.json"))
        return sorted(stem for stem in stems if KEY.fullmatch(stem))

    def peek(self, key: str) -> Manifest | None:
        """Return the manifest of an artifact, or None if there is none or it is damaged; nothing is moved."""
        try:
            return self._parse(key, self._raw(key))
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None

    def drop(self, manifest: Manifest) -> None:
        """Delete an artifact, its manifest first. To be called while its lease is held."""
        self.backend.delete(_name(manifest.key))
        self.backend.discard(_data(manifest))

    def move_to_trash(self, key: str, reason: str) -> None:
        """Move an artifact to `trash/`, with `reason` beside it: from here on it is to be made again.

        Raises `ArtifactNotFoundError` if there is none.
        """
        self._move_to_trash(key, self._raw(key), reason)

    def folder(self, manifest: Manifest) -> Path:
        """Return the data folder of an artifact, unchecked, to read it in parts."""
        return self.root / _data(manifest)

    def _fetched(self, manifest: Manifest) -> Path:
        return self.backend.fetch(_data(manifest), manifest.files)

    def _where(self, key: str) -> str:
        return self.backend.where(_name(key))

    def _raw(self, key: str) -> bytes:
        try:
            return self.backend.get(_name(key))
        except FileNotFoundError as error:
            raise ArtifactNotFoundError(f"no artifact {key} in {self.backend.where('').rstrip('/')}.") from error

    def _parse(self, key: str, raw: bytes) -> Manifest:
        try:
            manifest = Manifest.from_bytes(raw)
        except ValueError as error:
            raise DamagedArtifactError(f"{self._where(key)} cannot be read: {error}.") from error
        if manifest.key != key:
            raise DamagedArtifactError(f"{self._where(key)} is the manifest of {manifest.key}.")
        return manifest

    @contextmanager
    def _guarded(self, key: str) -> Iterator[Manifest]:
        """Give the manifest of `key`; damage found in it, or in the body, moves the artifact to the trash."""
        raw = self._raw(key)
        try:
            yield self._parse(key, raw)
        except DamagedArtifactError as damage:
            self._move_to_trash(key, raw, str(damage))
            raise DamagedArtifactError(f"artifact {key} was damaged and is moved to the trash: {damage}") from damage

    def _move_to_trash(self, key: str, seen: bytes, reason: str) -> None:
        """Move the artifact whose manifest was `seen` to the trash, the manifest first."""
        try:
            if self._raw(key) != seen:
                return  # another reader moved it, and it was made again since: the new one is intact
        except ArtifactNotFoundError:
            return
        parts = [_name(key)]
        with suppress(ValueError):
            parts.append(_data(Manifest.from_bytes(seen)))
        move_to_trash(self.backend, key, reason, *parts)

    def _commit(self, writer: Writer) -> Manifest:
        """Return the manifest now in the store: that of `writer`, unless another was there first."""
        manifest = writer.complete(writer.manifest)
        self.backend.keep(_data(manifest))
        while True:
            try:
                self.backend.put(_name(manifest.key), manifest.to_bytes(), exclusive=True)
                log.info("%s %s: committed", manifest.stage, manifest.key[:8])
                return manifest
            except FileExistsError:
                if (winner := self.find(manifest.key)) is not None:
                    if winner.data != manifest.data:  # else it is ours: the answer to an earlier try was lost
                        self.backend.discard(_data(manifest))
                    return winner

    def _retract(self, writer: Writer) -> None:
        """Delete what `writer` left, its manifest first in case the commit failed after writing that."""
        try:
            if Manifest.from_bytes(self._raw(writer.manifest.key)).data == writer.manifest.data:
                self.backend.delete(_name(writer.manifest.key))
        except StoreAccessError as error:  # it may be ours: what it refers to stays
            log.warning("%s; data/%s is left for prune", error, writer.manifest.data)
            return
        except (OSError, ValueError, StorageError) as error:
            log.debug("nothing of ours is under %s: %s", writer.manifest.key, error)
        with suppress(StorageError):
            self.backend.discard(_data(writer.manifest))


def _name(key: str) -> str:
    return f"manifests/{checked_key(key)[:2]}/{key}.json"


def _data(manifest: Manifest) -> str:
    return f"data/{manifest.data}"
