"""What a store can do without, and its removal; safe while workers run.

An artifact is deleted under its lease, its manifest first: readers then see that it is to be made, and a crash in
between leaves a data folder that nothing refers to, which the next sweep finds. What belongs to no key counts as a
leftover only when it is older than `GRACE`: a writer may still be filling it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from storage.checkpoints import Checkpoints
from storage.errors import LeaseTimeoutError
from storage.fingerprint import KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from storage.backend import Entry
    from storage.store import ArtifactStore

GRACE = timedelta(hours=1)
Kind = Literal["artifact", "checkpoint", "orphan", "trash", "partial"]


@dataclass(frozen=True)
class Leftover:
    """Something that may be deleted: an artifact or the checkpoints of a key, or what belongs to no key."""

    kind: Kind
    name: str  # the key, or the last part of `path`
    path: str  # its name in the store's backend
    bytes: int
    since: datetime  # when it was made or last changed
    data: str = ""  # of an artifact: its data folder when it was looked at


def survey(store: ArtifactStore, keep: Collection[str], before: datetime) -> list[Leftover]:
    """Return what may be deleted, oldest first: what was made or last changed before `before`.

    The artifacts and checkpoints of the keys in `keep` stay. Checkpoints of committed artifacts are listed at any age;
    what belongs to no key is listed if it is also older than `GRACE`.
    """
    settled = min(before, datetime.now(UTC) - GRACE)
    folders = store.backend.entries("data/*")  # looked at before the manifests: a commit may come between
    found = [*_artifacts(store, keep, before), *_checkpoints(store, keep, before)]
    used = {manifest.data for key in store.list_keys() if (manifest := store.peek(key)) is not None}
    orphans = (one for one in folders if one.name.rpartition("/")[2] not in used)
    found += [_loose("orphan", one) for one in orphans if one.changed < settled]
    found += [_loose("trash", one) for one in store.backend.entries("trash/*") if one.changed < before]
    for part in ("manifests", "runs", "steps"):
        partials = store.backend.entries(f"{part}/*/.*.partial")
        found += [_loose("partial", one) for one in partials if one.changed < settled]
    return sorted(found, key=lambda one: (one.since, one.name))


def sweep(store: ArtifactStore, leftovers: Iterable[Leftover]) -> tuple[list[Leftover], list[Leftover]]:
    """Delete `leftovers`; return what was deleted, and what was kept since another works on it or it has changed."""
    gone: list[Leftover] = []
    left: list[Leftover] = []
    for one in leftovers:
        (gone if _remove(store, one) else left).append(one)
    return gone, left


def size(store: ArtifactStore) -> int:
    """Return the bytes of all that lies in the store."""
    return sum(entry.bytes for entry in store.backend.entries("*"))


def _artifacts(store: ArtifactStore, keep: Collection[str], before: datetime) -> Iterator[Leftover]:
    for key in store.list_keys():
        manifest = None if key in keep else store.peek(key)
        if manifest is not None and manifest.created < before:
            bytes_ = sum(file.size for file in manifest.files.values())
            yield Leftover("artifact", key, f"data/{manifest.data}", bytes_, manifest.created, manifest.data)


def _checkpoints(store: ArtifactStore, keep: Collection[str], before: datetime) -> Iterator[Leftover]:
    for one in store.backend.entries("steps/*"):
        key = one.name.rpartition("/")[2]
        if KEY.fullmatch(key) and (store.peek(key) is not None or (key not in keep and one.changed < before)):
            yield _loose("checkpoint", one)


def _remove(store: ArtifactStore, one: Leftover) -> bool:
    if one.kind not in ("artifact", "checkpoint"):
        store.backend.delete(one.path) if one.kind == "partial" else store.backend.discard(one.path)
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


def _loose(kind: Kind, entry: Entry) -> Leftover:
    return Leftover(kind, entry.name.rpartition("/")[2], entry.name, entry.bytes, entry.changed)
