"""What a store can do without: found by age and by what refers to it, removed under leases."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import torch

from storage import ArtifactStore, Checkpoints, fingerprint
from storage.prune import survey, sweep

if TYPE_CHECKING:
    from pathlib import Path

    from storage import Manifest

LATER = timedelta(minutes=1)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def put(store: ArtifactStore, name: str) -> Manifest:
    with store.writing(fingerprint(name), stage=name, version=1) as writer:
        writer.put("x", torch.arange(9.0))
    return writer.manifest


def now() -> datetime:
    return datetime.now(UTC)


def age(path: Path, hours: float) -> None:
    """Let a path, and all in it, be as old as that."""
    then = time.time() - 3600 * hours
    for inner in (*path.rglob("*"), path):
        os.utime(inner, (then, then))


def listing(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in root.rglob("*")}


def test_kept_and_young_artifacts_stay_and_a_survey_changes_nothing(store: ArtifactStore) -> None:
    kept, other = put(store, "kept"), put(store, "other")
    before = listing(store.root)
    assert survey(store, (), now() - LATER) == []
    found = survey(store, {kept.key}, now() + LATER)
    assert [(one.kind, one.name) for one in found] == [("artifact", other.key)]
    assert found[0].bytes == sum(file.size for file in other.files.values())
    assert listing(store.root) == before
    gone, left = sweep(store, found)
    assert (len(gone), left) == (1, [])
    assert store.find(other.key) is None
    assert not store.folder(other).exists()
    assert torch.equal(store.read(kept.key)["x"], torch.arange(9.0))


def test_what_is_leased_or_was_made_again_is_left(store: ArtifactStore) -> None:
    manifest = put(store, "busy")
    found = survey(store, (), now() + LATER)
    with store.lease(manifest.key):
        assert sweep(store, found) == ([], found)
    store.drop(manifest)
    again = put(store, "busy")
    assert sweep(store, found) == ([], found)
    assert store.find(again.key) == again


def test_a_crash_between_manifest_and_data_leaves_an_orphan_for_the_next_sweep(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put(store, "torn")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(store, survey(store, (), now() + LATER))
    assert store.find(manifest.key) is None
    assert survey(store, (), now() + LATER) == []  # young: a writer may be filling it
    age(store.folder(manifest), 2)
    found = survey(store, (), now())
    assert [(one.kind, one.name) for one in found] == [("orphan", manifest.data)]
    sweep(store, found)
    assert not store.folder(manifest).exists()


def test_checkpoints_of_what_is_done_go_and_those_of_what_is_kept_stay(store: ArtifactStore) -> None:
    done = put(store, "done")
    for key in (done.key, fingerprint("running"), fingerprint("forgotten")):
        Checkpoints(store, key).save(3, {"latents": torch.ones(2)})
    age(store.root / "steps", 48)
    found = survey(store, {done.key, fingerprint("running")}, now() - timedelta(days=1))
    assert {one.name for one in found if one.kind == "checkpoint"} == {done.key, fingerprint("forgotten")}
    sweep(store, found)
    assert Checkpoints(store, fingerprint("running")).newest() is not None
    assert Checkpoints(store, fingerprint("forgotten")).newest() is None


def test_trash_and_partial_files_go_by_their_age(store: ArtifactStore) -> None:
    manifest = put(store, "damaged")
    store.move_to_trash(manifest.key, "for the test")
    partial = store.root / "manifests" / "ab" / ".x.json.0.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    assert {one.kind for one in survey(store, (), now() + LATER)} == {"trash"}
    age(store.root, 2)
    found = survey(store, (), now() - timedelta(hours=1))
    assert {one.kind for one in found} == {"trash", "partial"}
    sweep(store, found)
    assert not partial.exists()
    assert not list((store.root / "trash").iterdir())


def test_a_damaged_manifest_is_neither_swept_nor_moved(store: ArtifactStore) -> None:
    manifest = put(store, "odd")
    path = next((store.root / "manifests").glob("*/*.json"))
    path.write_bytes(b"{}")
    found = survey(store, (), now() + LATER)
    assert not [one for one in found if one.kind == "artifact"]
    assert path.read_bytes() == b"{}"
    assert store.folder(manifest).exists()
