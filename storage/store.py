"""The content-addressed store: an artifact exists once its manifest does, and a manifest is made last.

    data/<uuid>/               arrays and files, under a fresh name, flushed
    manifests/<k2>/<key>.json  what is in there, with a hash of every file; made exclusively: the commit
    steps/<key>/               checkpoints (`storage.checkpoints`)
    locks/<key>.lock           leases
    trash/                     what was found damaged

A crash before the commit leaves a data folder that nothing refers to: readers never see it, and a sweep may
delete it. A key says what a result is made from: two writers of one key write the same, and either may win.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.contents import FILES, Draft, check, checked_path, open_frames, open_pictures, read_bytes, read_tensors
from storage.durable import make_folder, put_in_place
from storage.errors import ArtifactNotFoundError, DamagedArtifactError, StorageError, explained
from storage.fingerprint import KEY, checked_key
from storage.locks import lease
from storage.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from storage.frames import Frames, Regions

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
    """A folder of finished stage results, each under the fingerprint of all that decides its bytes."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

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
            return read_tensors(self.folder(manifest), manifest)

    def open_frames(self, key: str) -> dict[str, Frames]:
        """Return the clips of an artifact, to be read frame by frame, after every byte of it was checked.

        Damage found by the check is handled as in `read`.
        """
        with self._guarded(key) as manifest:
            return open_frames(self.folder(manifest), manifest)

    def open_pictures(self, key: str) -> dict[str, Regions]:
        """Return the pictures of an artifact, to be read by regions, after every byte of it was checked.

        Damage found by the check is handled as in `read`.
        """
        with self._guarded(key) as manifest:
            return open_pictures(self.folder(manifest), manifest)

    def file_path(self, key: str, name: str) -> Path:
        """Return where one file of an artifact lies, checked, for those who copy it; damage is handled as in `read`."""
        with self._guarded(key) as manifest:
            if f"{FILES}/{name}" not in manifest.files:
                raise ArtifactNotFoundError(f"artifact {key} holds no file {name!r}.")
            return checked_path(self.folder(manifest), manifest, name)

    def read_file(self, key: str, name: str) -> bytes:
        """Return one file of an artifact, checked; damage is handled as in `read`."""
        with self._guarded(key) as manifest:
            if f"{FILES}/{name}" not in manifest.files:
                raise ArtifactNotFoundError(f"artifact {key} holds no file {name!r}.")
            return read_bytes(self.folder(manifest), manifest, name)

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
        path = self.root / "locks" / f"{checked_key(key)}.lock"
        return lease(path, on_wait=on_wait, timeout=timeout)

    def verify(self, key: str) -> str | None:
        """Return what is damaged in an artifact, in words, or None; moves nothing."""
        try:
            manifest = self._parse(key, self._raw(key))
            check(self.folder(manifest), manifest)
        except DamagedArtifactError as damage:
            return str(damage)
        return None

    def list_keys(self) -> list[str]:
        """Return the keys of all committed artifacts, sorted."""
        return sorted(path.stem for path in self.root.glob("manifests/??/*.json") if KEY.fullmatch(path.stem))

    def peek(self, key: str) -> Manifest | None:
        """Return the manifest of an artifact as it lies there, or None; nothing is moved, damaged or not."""
        try:
            return self._parse(key, self._raw(key))
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None

    def drop(self, manifest: Manifest) -> None:
        """Delete an artifact, its manifest first; to be called under its lease."""
        self._path(manifest.key).unlink(missing_ok=True)
        shutil.rmtree(self.folder(manifest), ignore_errors=True)

    def set_aside(self, key: str, reason: str) -> None:
        """Move an artifact to `trash/`: from here on it is to be made again."""
        self._set_aside(key, self._raw(key), reason)

    def folder(self, manifest: Manifest) -> Path:
        """Return the data folder of an artifact, for those who read it in parts (unchecked)."""
        return self.root / "data" / manifest.data

    def move_to_trash(self, name: str, reason: str, *paths: Path) -> None:
        """Move those of `paths` that exist to a new folder `trash/name-…`, in this order."""
        log.warning("%s is set aside: %s", name, reason)
        folder = self.root / "trash" / f"{name}-{uuid.uuid4().hex[:8]}"
        with explained(folder):
            make_folder(folder)
            for path in paths:
                with suppress(FileNotFoundError):
                    path.rename(folder / path.name)
        with suppress(OSError):
            (folder / "reason.txt").write_text(f"{reason}\n", encoding="utf-8")

    def _path(self, key: str) -> Path:
        return self.root / "manifests" / checked_key(key)[:2] / f"{key}.json"

    def _raw(self, key: str) -> bytes:
        path = self._path(key)
        try:
            with explained(path):
                return path.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactNotFoundError(f"no artifact {key} in {self.root}.") from error

    def _parse(self, key: str, raw: bytes) -> Manifest:
        try:
            manifest = Manifest.from_bytes(raw)
        except ValueError as error:
            raise DamagedArtifactError(f"{self._path(key)} cannot be read: {error}.") from error
        if manifest.key != key:
            raise DamagedArtifactError(f"{self._path(key)} is the manifest of {manifest.key}.")
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
        paths = [self._path(key)]
        with suppress(ValueError):
            paths.append(self.folder(Manifest.from_bytes(seen)))
        self.move_to_trash(key, reason, *paths)

    def _commit(self, writer: Writer) -> Manifest:
        """Return the manifest now in the store: that of `writer`, unless another was there first."""
        manifest, path = writer.complete(writer.manifest), self._path(writer.manifest.key)
        with explained(path):
            make_folder(path.parent)
            while True:
                try:
                    put_in_place(path, manifest.to_bytes(), exclusive=True)
                    log.info("%s %s: committed", manifest.stage, manifest.key[:8])
                    return manifest
                except FileExistsError:
                    if (winner := self.find(manifest.key)) is not None:
                        writer.discard()
                        return winner

    def _retract(self, writer: Writer) -> None:
        """Delete what `writer` left, its manifest first in case the commit failed after that was in place."""
        path = self._path(writer.manifest.key)
        try:
            is_ours = Manifest.from_bytes(path.read_bytes()).data == writer.manifest.data
        except (OSError, ValueError, StorageError):
            is_ours = False
        if is_ours:
            path.unlink()
        writer.discard()
