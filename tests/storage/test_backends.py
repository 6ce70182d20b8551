"""One conformance and crash suite over both backends of a store: a folder, and a bucket of a real local server."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch

from storage import (
    ArtifactNotFoundError,
    ArtifactStore,
    Checkpoints,
    DamagedArtifactError,
    Disk,
    LeaseTimeoutError,
    RunExistsError,
    RunNotFoundError,
    RunRecord,
    Runs,
    StoreAccessError,
    Unfinished,
    bucket_lease,
    fingerprint,
)
from storage import prune as pruning
from storage.bucket import Bucket
from tests.storage.conftest import Processes, put_video
from tests.storage.test_processes import lines, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage import Backend

KILLS = 6
SEEN = iter(range(10**6))


@pytest.fixture(params=["disk", "bucket"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, server: str) -> Callable[[str], Backend]:
    """One backend as the machine of a name sees it: with copies of its own, where it has any."""
    if request.param == "disk":
        return lambda name: Disk(tmp_path / "store")
    url = f"s3://studio/test-{next(SEEN)}"
    return lambda name: Bucket(url, tmp_path / name)


# on a disk tests/storage/test_processes.py kills twice as often
killed_in = pytest.mark.parametrize(
    "machine", [pytest.param("disk", marks=pytest.mark.thorough), "bucket"], indirect=True
)


@pytest.fixture
def key() -> str:
    return fingerprint("an artifact")


def filled(store: ArtifactStore, key: str, value: float = 1.0) -> None:
    with store.writing(key, stage="decode", version=1, params={"value": value}) as writer:
        writer.put("latents", torch.full((1, 4, 8, 8), value), "BChw")
        writer.put("half", torch.full((3,), value, dtype=torch.bfloat16))
        put_video(store, writer, "clip", (1, 3, 2, 8, 8), torch.float16, [torch.zeros(1, 3, 8, 8).half()] * 2)
        writer.put_file("note.txt", str(value).encode())
    Checkpoints(store, key).clear()


def spoilt(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put("image", torch.ones(3))
        writer.put("x", torch.ones(3), "BC")


def test_what_one_machine_commits_another_reads(machine: Callable[[str], Backend], key: str) -> None:
    here, there = ArtifactStore(machine("here")), ArtifactStore(machine("there"))
    with pytest.raises(ArtifactNotFoundError):
        there.read(key)
    filled(here, key)
    read = there.read(key)
    assert torch.equal(read["latents"], torch.ones(1, 4, 8, 8))
    assert torch.equal(read["half"], torch.ones(3, dtype=torch.bfloat16))
    assert (there.read_file(key, "note.txt"), there.file_path(key, "note.txt").read_bytes()) == (b"1.0", b"1.0")
    assert (there.list_keys(), there.verify(key)) == ([key], None)
    assert there.find(key) == here.find(key)
    video = fingerprint("a video")
    with here.writing(video, stage="decode", version=1) as writer:
        frames = [torch.full((1, 3, 8, 8), i).half() for i in (1, 2)]
        put_video(here, writer, "image", (1, 3, 2, 8, 8), torch.float16, frames)
    assert [float(frame.mean()) for frame in there.open_frames(video)["image"]] == [1.0, 2.0]


def test_of_two_commits_the_first_stays(machine: Callable[[str], Backend], key: str) -> None:
    here, there = ArtifactStore(machine("here")), ArtifactStore(machine("there"))
    with here.writing(key, stage="decode", version=1) as writer:
        writer.put("image", torch.ones(3))
        with there.writing(key, stage="decode", version=1) as faster:
            faster.put("image", torch.ones(3))
    assert writer.manifest.data == faster.manifest.data
    assert [entry.name for entry in here.backend.entries("data/*")] == [f"data/{faster.manifest.data}"]


def test_a_body_that_fails_leaves_nothing(machine: Callable[[str], Backend], key: str) -> None:
    store = ArtifactStore(machine("here"))
    with pytest.raises(ValueError, match="x has shape"):
        spoilt(store, key)
    assert (store.find(key), store.backend.entries("data/*"), store.backend.entries("manifests/*/*")) == (None, [], [])
    filled(store, key)
    assert store.verify(key) is None


def test_damage_in_the_place_is_found_by_every_machine(machine: Callable[[str], Backend], key: str) -> None:
    here, there = ArtifactStore(machine("here")), ArtifactStore(machine("there"))
    filled(here, key)
    manifest = here.find(key)
    assert manifest is not None
    name = f"data/{manifest.data}/files/note.txt"
    here.backend.put(name, b"1.1")
    with pytest.raises(DamagedArtifactError, match="differs from its checksum"):
        there.read(key)
    assert there.find(key) is None
    assert "checksum" in there.backend.get(there.backend.names("trash/*/reason.txt")[0]).decode()
    assert there.backend.names(f"trash/{key}-*/{key}.json")
    filled(there, key)
    assert here.read_file(key, "note.txt") == b"1.0"


def test_a_damaged_copy_is_fetched_again(server: str, tmp_path: Path, key: str) -> None:
    store = ArtifactStore(Bucket("s3://studio/copies", tmp_path / "here"))
    filled(store, key)
    manifest = store.find(key)
    assert manifest is not None
    (store.folder(manifest) / "files" / "note.txt").write_bytes(b"1.1")
    (store.folder(manifest) / "half.zarr" / "zarr.json").unlink()
    assert store.verify(key) is None
    assert float(store.read(key)["half"].sum()) == 3


@pytest.mark.thorough
def test_copies_are_bounded(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.bucket.IN_USE_SECONDS", 0.0)
    store = ArtifactStore(Bucket("s3://studio/bounded", tmp_path / "here", copies_bytes=20_000))
    keys = [fingerprint(number) for number in range(12)]
    for key in keys:
        filled(store, key)
    size = sum(path.stat().st_size for path in (tmp_path / "here" / "data").rglob("*") if path.is_file())
    assert 0 < size < 20_000 + 10_000
    assert len(list((tmp_path / "here" / "data").iterdir())) < len(keys)
    assert all(torch.equal(store.read(key)["latents"], torch.ones(1, 4, 8, 8)) for key in keys)


def test_another_machine_goes_on_from_the_last_checkpoint(machine: Callable[[str], Backend], key: str) -> None:
    here = Checkpoints(ArtifactStore(machine("here")), key)
    assert here.newest() is None
    for step in range(4):
        here.save(step, {"latents": torch.full((2,), float(step))}, {"note": step})
    there = Checkpoints(ArtifactStore(machine("there")), key)
    newest = there.newest()
    assert newest is not None
    assert (newest.step, newest.meta, newest.tensors["latents"].tolist()) == (3, {"note": 3}, [3.0, 3.0])
    assert there.steps() == [3, 2]
    assert len(there.backend.entries(f"steps/{key}/*")) == 4  # two records, two folders
    name = there.backend.names(f"steps/{key}/step-000003.json")[0]
    there.backend.put(name, there.backend.get(name).replace(b'"step": 3', b'"step": 2'))
    older = there.newest()
    assert older is not None
    assert older.step == 2
    there.clear()
    assert here.newest() is None
    assert here.backend.entries("steps/*") == []


def test_another_machine_goes_on_from_the_frames_that_were_flushed(machine: Callable[[str], Backend], key: str) -> None:
    frames = [torch.full((1, 3, 8, 8), i).half() for i in range(4)]
    here, there = (Checkpoints(ArtifactStore(machine(name)), key) for name in ("here", "there"))
    first = Unfinished(here)
    pieces = first.array("image", (1, 3, 4, 8, 8), torch.float16)
    for index in range(3):
        if index == 2:
            first.flush()
        pieces.put(index, frames[index])
    again = Unfinished(Checkpoints(there.store, key))
    on_disk = isinstance(there.backend, Disk)  # there the third is seen too, flushed or not
    assert len(again) == (3 if on_disk else 2)
    found = again.array("image", (1, 3, 4, 8, 8), torch.float16)
    assert all(torch.equal(frame, frames[index]) for index, frame in found.items())
    assert len(Unfinished(Checkpoints(here.store, key))) == 3
    again.flush()
    name = there.backend.names(f"steps/{key}/*/image.zarr/c/0/0/1/0/0")
    for one in name:
        there.backend.put(one, b"torn")
    assert len(Unfinished(Checkpoints(ArtifactStore(machine("elsewhere")), key))) == len(again) - 1
    Checkpoints(there.store, key).clear()
    assert there.backend.entries("steps/*") == []


def test_runs_are_seen_by_every_machine(machine: Callable[[str], Backend], key: str) -> None:
    here, there = Runs(machine("here")), Runs(machine("there"))
    with pytest.raises(RunNotFoundError):
        there.load("night-1")
    record = RunRecord(run="night-1", spec={"prompt": "x"}, created=_now())
    here.create(record)
    with pytest.raises(RunExistsError):
        there.create(record)
    there.save(record.revised(state="done"))
    assert (here.load("night-1").state, here.names()) == ("done", ["night-1"])
    assert [found.run for found in here.list()] == ["night-1"]
    with here.claim("night-1"):
        with pytest.raises(LeaseTimeoutError), there.claim("night-1"):
            pass
        with there.claim("night-2"):
            pass
    with there.claim("night-1"):
        pass


@pytest.mark.thorough
def test_a_lease_of_a_killed_holder_is_taken_over(
    machine: Callable[[str], Backend], key: str, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_SECONDS", 0.5)
    backend = machine("there")
    store, report = ArtifactStore(backend), tmp_path / "report"
    holder = processes.start("hold", _said(machine("here")), report, key)
    wait_for(report, 1)
    with pytest.raises(LeaseTimeoutError), store.lease(key, timeout=0):
        pass
    processes.kill(holder)
    with store.lease(key, timeout=30):
        pass


@pytest.mark.thorough
def test_a_holder_that_gives_signs_keeps_its_lease(
    server: str, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_SECONDS", 0.3)
    here, there = (ArtifactStore(Bucket("s3://studio/signs", tmp_path / name)) for name in ("here", "there"))
    with here.lease(key), pytest.raises(LeaseTimeoutError), there.lease(key, timeout=3):
        pass
    with there.lease(key, timeout=3):
        pass
    assert there.backend.names("locks/*.json") == []


def test_prune_finds_the_same_in_both(
    machine: Callable[[str], Backend], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "GRACE", timedelta(0))
    store, kept = ArtifactStore(machine("here")), fingerprint("kept")
    filled(store, key)
    filled(store, kept)
    Checkpoints(store, kept).save(1, {"latents": torch.ones(2)})
    store.backend.put("data/" + "f" * 32 + "/x.zarr/zarr.json", b"{}")
    time.sleep(1.1 if isinstance(store.backend, Bucket) else 0)  # a bucket tells whole seconds
    found = pruning.survey(store, {kept}, _now())
    assert sorted((one.kind, one.name) for one in found) == sorted(
        [("artifact", key), ("checkpoint", kept), ("orphan", "f" * 32)]
    )
    before = pruning.size(store)
    gone, left = pruning.sweep(store, found)
    assert (len(gone), left, store.list_keys()) == (3, [], [kept])
    assert before - pruning.size(store) >= sum(one.bytes for one in found if one.kind == "artifact")
    assert store.verify(kept) is None


@pytest.mark.thorough
@killed_in
def test_killed_in_mid_commit_nothing_is_torn_or_lost(
    machine: Callable[[str], Backend], tmp_path: Path, processes: Processes
) -> None:
    acks, draw = tmp_path / "acks", random.Random(0)
    for kill in range(KILLS):
        process = processes.start("commit_loop", _said(machine(f"worker-{kill}")), acks, 1000 * kill)
        wait_for(acks, len(lines(acks)) + 1)
        time.sleep(draw.uniform(0, 0.3))
        processes.kill(process)
    store = ArtifactStore(machine("reader"))
    acknowledged = {fingerprint(int(line)) for line in lines(acks)}
    assert acknowledged <= set(store.list_keys())
    assert len(set(store.list_keys()) - acknowledged) <= KILLS  # committed, but killed before the word was out
    for key in store.list_keys():
        value: Any = store.find(key).params["i"]  # type: ignore[union-attr]
        assert torch.equal(store.read(key)["latents"], torch.full((1, 4, 32, 32), float(value)))
    assert store.backend.entries("trash/*") == []


@pytest.mark.thorough
@killed_in
def test_killed_in_mid_checkpoint_the_old_or_the_new_is_there(
    machine: Callable[[str], Backend], key: str, tmp_path: Path, processes: Processes
) -> None:
    acks, draw = tmp_path / "acks", random.Random(1)
    for kill in range(KILLS):
        process = processes.start("checkpoint_loop", _said(machine(f"worker-{kill}")), acks, key)
        wait_for(acks, len(lines(acks)) + 1)
        time.sleep(draw.uniform(0, 0.3))
        processes.kill(process)
        newest = Checkpoints(ArtifactStore(machine(f"reader-{kill}")), key).newest()
        assert newest is not None
        assert newest.meta["save"] - int(lines(acks)[-1]) in (0, 1)
        assert torch.equal(newest.tensors["latents"], torch.full((1, 4, 16, 16), float(newest.meta["save"])))


@pytest.mark.parametrize("url", ["s3://", "s3://x", "s3://UPPER/y", "https://host/x", "s3://bucket/../x", "/tmp/x"])
def test_what_is_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not s3://BUCKET or s3://BUCKET/PREFIX"):
        Bucket(url, tmp_path)


def test_a_bucket_that_is_not_there_is_said(server: str, tmp_path: Path) -> None:
    with pytest.raises(StoreAccessError, match="there is no bucket at s3://nobody/x"):
        Bucket("s3://nobody/x", tmp_path).probe()


def _said(backend: Backend) -> str:
    """A backend in the words of `worker.py`."""
    return f"{backend.url} {backend.root}" if isinstance(backend, Bucket) else str(backend.root)


def _now() -> datetime:
    return datetime.now(UTC)
