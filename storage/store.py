"""The content-addressed store: an artifact exists once its manifest does, and a manifest is made last.

    data/<uuid>/               arrays and files, under a fresh name, flushed
    manifests/<k2>/<key>.json  what is in there, with a hash of every file; made exclusively: the commit
    steps/<key>/               checkpoints (`storage.checkpoints`)
    locks/<key>.lock           leases
    trash/                     what was found damaged

All of it in a place (`storage.place`): a folder, or a bucket with copies in one.

A crash before the commit leaves a data folder that nothing refers to: readers never see it, and a sweep may
delete it. A key says what a result is made from: two writers of one key write the same, and either may win.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from storage.contents import FILES, Draft, check, checked_path, open_frames, open_pictures, read_bytes, read_tensors
from storage.errors import ArtifactNotFoundError, DamagedArtifactError, StorageError, StoreAccessError
from storage.fingerprint import KEY, checked_key
from storage.manifest import Manifest
from storage.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from storage.frames import Frames, Regions
    from storage.place import Place

log = logging.getLogger(__name__)


class Writer(Draft):
    """An artifact in the making. After the `with`, `manifest` is the store's: ours or a faster writer's."""

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
        measures: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Say how the artifact was made: what does not decide its bytes (fields as in `Manifest`)."""
        self.manifest = self.manifest.revised(
            device=device,
            libraries=dict(libraries or {}),
            seconds=seconds,
            resumed_at=tuple(resumed_at),
            peak_memory=peak_memory,
            measures=tuple(measures),
            counts=dict(counts or {}),
        )


class ArtifactStore:
    """Finished stage results in one place, each under the fingerprint of all that decides its bytes.

    `root` is the local folder of the place: the store itself, or what a bucket has here.
    """

    def __init__(self, where: Path | str | Place) -> None:
        self.place = place_of(where)
        self.root = self.place.root

    def find(self, key: str) -> Manifest | None:
        """Return the manifest of a committed artifact, or None: it is to be made. `read` checks the data."""
        try:
            with self._guarded(key) as manifest:
                return manifest
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None

    def read(self, key: str) -> dict[str, Tensor]:
        """Return all arrays of an artifact, after every byte of it was checked.

        A damaged artifact is moved to `trash/` and raises `DamagedArtifactError`; `find` then returns None.
        """
        with self._guarded(key) as manifest:
            return read_tensors(self._fetched(manifest), manifest)

    def open_frames(self, key: str) -> dict[str, Frames]:
        """Return the videos of an artifact, to be read frame by frame, after every byte of it was checked.

        Damage found by the check is handled as in `read`.
        """
        with self._guarded(key) as manifest:
            return open_frames(self._fetched(manifest), manifest)

    def open_pictures(self, key: str) -> dict[str, Regions]:
        """Return the pictures of an artifact, to be read by regions, after every byte of it was checked.

        Damage found by the check is handled as in `read`.
        """
        with self._guarded(key) as manifest:
            return open_pictures(self._fetched(manifest), manifest)

    def file_path(self, key: str, name: str) -> Path:
        """Return where one file of an artifact lies, checked, for those who copy it; damage is handled as in `read`."""
        with self._guarded(key) as manifest:
            if f"{FILES}/{name}" not in manifest.files:
                raise ArtifactNotFoundError(f"artifact {key} holds no file {name!r}.")
            return checked_path(self._fetched(manifest), manifest, name)

    def read_file(self, key: str, name: str) -> bytes:
        """Return one file of an artifact, checked; damage is handled as in `read`."""
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

        When the body or the commit raises, nothing is left and nothing was promised. If another writer was
        faster, its artifact stays and this copy is deleted. `params` are as JSON has them (lists, no tuples).
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
        """Hold the right to make `key`, which ends with the process; look again with `find` once it is held.

        A second worker waits here, until the first is done, dead or silent; arguments as for `storage.locks.lease`.
        """
        return self.place.lease(checked_key(key), on_wait=on_wait, timeout=timeout)

    def verify(self, key: str) -> str | None:
        """Return what is damaged in an artifact, in words, or None; moves nothing."""
        try:
            manifest = self._parse(key, self._raw(key))
            check(self._fetched(manifest), manifest)
        except DamagedArtifactError as damage:
            return str(damage)
        return None

    def list_keys(self) -> list[str]:
        """Return the keys of all committed artifacts, sorted."""
        stems = (name.rpartition("/")[2].removesuffix(".json") for name in self.place.names("manifests/??/*.json"))
        return sorted(stem for stem in stems if KEY.fullmatch(stem))

    def peek(self, key: str) -> Manifest | None:
        """Return the manifest of an artifact as it lies there, or None; nothing is moved, damaged or not."""
        try:
            return self._parse(key, self._raw(key))
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None

    def drop(self, manifest: Manifest) -> None:
        """Delete an artifact, its manifest first; to be called under its lease."""
        self.place.delete(_name(manifest.key))
        self.place.discard(_data(manifest))

    def set_aside(self, key: str, reason: str) -> None:
        """Move an artifact to `trash/`: from here on it is to be made again."""
        self._set_aside(key, self._raw(key), reason)

    def folder(self, manifest: Manifest) -> Path:
        """Return the data folder of an artifact, for those who read it in parts (unchecked)."""
        return self.root / _data(manifest)

    def move_to_trash(self, name: str, reason: str, *parts: str) -> None:
        """Move those of `parts`, names in the place, that exist to a new folder `trash/name-…`, in this order."""
        log.warning("%s is set aside: %s", name, reason)
        folder = f"trash/{name}-{uuid.uuid4().hex[:8]}"
        for part in parts:
            self.place.move(part, folder)
        with suppress(OSError):
            self.place.put(f"{folder}/reason.txt", f"{reason}\n".encode())

    def _fetched(self, manifest: Manifest) -> Path:
        return self.place.fetch(_data(manifest), manifest.files)

    def _where(self, key: str) -> str:
        return self.place.where(_name(key))

    def _raw(self, key: str) -> bytes:
        try:
            return self.place.get(_name(key))
        except FileNotFoundError as error:
            raise ArtifactNotFoundError(f"no artifact {key} in {self.place.where('').rstrip('/')}.") from error

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
        """Hand out the manifest of `key`; damage found in it, or in the body, sets the artifact aside."""
        raw = self._raw(key)
        try:
            yield self._parse(key, raw)
        except DamagedArtifactError as damage:
            self._set_aside(key, raw, str(damage))
            raise DamagedArtifactError(f"artifact {key} was damaged and is set aside: {damage}") from damage

    def _set_aside(self, key: str, seen: bytes, reason: str) -> None:
        """Move the artifact whose manifest was `seen` to the trash, the manifest first."""
        try:
            if self._raw(key) != seen:
                return  # set aside by another reader and made again since: the new one is not to blame
        except ArtifactNotFoundError:
            return
        parts = [_name(key)]
        with suppress(ValueError):
            parts.append(_data(Manifest.from_bytes(seen)))
        self.move_to_trash(key, reason, *parts)

    def _commit(self, writer: Writer) -> Manifest:
        """Return the manifest now in the store: that of `writer`, unless another was there first."""
        manifest = writer.complete(writer.manifest)
        self.place.keep(_data(manifest))
        while True:
            try:
                self.place.put(_name(manifest.key), manifest.to_bytes(), exclusive=True)
                log.info("%s %s: committed", manifest.stage, manifest.key[:8])
                return manifest
            except FileExistsError:
                if (winner := self.find(manifest.key)) is not None:
                    if winner.data != manifest.data:  # else it is ours: the answer to an earlier try was lost
                        self.place.discard(_data(manifest))
                    return winner

    def _retract(self, writer: Writer) -> None:
        """Delete what `writer` left, its manifest first in case the commit failed after that was in place."""
        try:
            if Manifest.from_bytes(self._raw(writer.manifest.key)).data == writer.manifest.data:
                self.place.delete(_name(writer.manifest.key))
        except StoreAccessError as error:  # it may be ours: what it refers to stays
            log.warning("%s; data/%s is left for prune", error, writer.manifest.data)
            return
        except (OSError, ValueError, StorageError) as error:
            log.debug("nothing of ours is under %s: %s", writer.manifest.key, error)
        with suppress(StorageError):
            self.place.discard(_data(writer.manifest))


def _name(key: str) -> str:
    return f"manifests/{checked_key(key)[:2]}/{key}.json"


def _data(manifest: Manifest) -> str:
    return f"data/{manifest.data}"
