"""What a store can do without, and its removal; safe beside running workers.

An artifact goes under its lease, manifest first: readers then see that it is to be made, and a crash in between leaves
a data folder that nothing refers to, which the next sweep finds. Nothing younger than `GRACE` is taken for a leftover:
a writer may still be filling it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from storage.checkpoints import Checkpoints
from storage.errors import LeaseTimeoutError, explained
from storage.fingerprint import KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from storage.store import ArtifactStore

GRACE = timedelta(hours=1)
Kind = Literal["artifact", "checkpoint", "orphan", "trash", "partial"]


@dataclass(frozen=True)
class Leftover:
    """Something that may go: an artifact or the checkpoints of a key, or a path that belongs to none."""

    kind: Kind
    name: str  # the key, or the path's name
    path: Path
    bytes: int
    since: datetime  # when it was made or last changed
    data: str = ""  # of an artifact: its data folder when it was looked at


def survey(store: ArtifactStore, keep: Collection[str], before: datetime) -> list[Leftover]:
    """List what may go, oldest first: everything but the artifacts of `keep`, made or last changed before `before`.

    Checkpoints of committed artifacts go at any age; what belongs to no key goes after `GRACE` at the least.
    """
    settled = min(before, datetime.now(UTC) - GRACE)
    folders = list((store.root / "data").glob("*"))  # looked at before the manifests: a commit may come between
    found = [*_artifacts(store, keep, before), *_checkpoints(store, keep, before)]
    used = {manifest.data for key in store.list_keys() if (manifest := store.peek(key)) is not None}
    found += [_loose("orphan", path) for path in folders if path.name not in used and _changed(path) < settled]
    found += [_loose("trash", path) for path in (store.root / "trash").glob("*") if _changed(path) < before]
    for part in ("manifests", "runs", "steps"):
        partials = (store.root / part).glob("*/.*.partial")
        found += [_loose("partial", path) for path in partials if _changed(path) < settled]
    return sorted(found, key=lambda one: (one.since, one.name))


def sweep(store: ArtifactStore, leftovers: Iterable[Leftover]) -> tuple[list[Leftover], list[Leftover]]:
    """Delete; return what is gone, and what was left because somebody works on it or it has changed since."""
    gone: list[Leftover] = []
    left: list[Leftover] = []
    for one in leftovers:
        with explained(one.path):
            (gone if _remove(store, one) else left).append(one)
    return gone, left


def size(store: ArtifactStore) -> int:
    """Bytes of all that lies in the store."""
    return _bytes(store.root)


def _artifacts(store: ArtifactStore, keep: Collection[str], before: datetime) -> Iterator[Leftover]:
    for key in store.list_keys():
        manifest = None if key in keep else store.peek(key)
        if manifest is not None and manifest.created < before:
            bytes_ = sum(file.size for file in manifest.files.values())
            yield Leftover("artifact", key, store.folder(manifest), bytes_, manifest.created, manifest.data)


def _checkpoints(store: ArtifactStore, keep: Collection[str], before: datetime) -> Iterator[Leftover]:
    for path in (store.root / "steps").glob("*"):
        if KEY.fullmatch(path.name):
            needless = store.peek(path.name) is not None or (path.name not in keep and _changed(path) < before)
            if needless:
                yield _loose("checkpoint", path)


def _remove(store: ArtifactStore, one: Leftover) -> bool:
    if one.kind not in ("artifact", "checkpoint"):
        shutil.rmtree(one.path) if one.path.is_dir() else one.path.unlink(missing_ok=True)
        return True
    try:
        with store.lease(one.name, timeout=0):
            if one.kind == "checkpoint":
                Checkpoints(store, one.name).clear()
                return True
            manifest = store.peek(one.name)
            if manifest is None or manifest.data != one.data:
                return False
            store.drop(manifest)
            return True
    except LeaseTimeoutError:
        return False


def _loose(kind: Kind, path: Path) -> Leftover:
    return Leftover(kind, path.name, path, _bytes(path), _changed(path))


def _changed(path: Path) -> datetime:
    """When anything in a folder last changed; one that is gone is as good as new."""
    try:
        times = [path.stat().st_mtime, *(inner.stat().st_mtime for inner in path.rglob("*"))]
    except FileNotFoundError:
        return datetime.now(UTC)
    return datetime.fromtimestamp(max(times), UTC)


def _bytes(path: Path) -> int:
    total = 0
    for inner in (path, *path.rglob("*")):
        try:
            total += inner.stat().st_size if inner.is_file() else 0
        except FileNotFoundError:
            continue
    return total
