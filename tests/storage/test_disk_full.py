"""When the disk refuses, the caller hears it, nothing new is promised and nothing old is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from storage import (
    ArtifactStore,
    Checkpoints,
    RunRecord,
    Runs,
    StorageError,
    StoreAccessError,
    StoreFullError,
)
from tests.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = "0" * 64, "1" * 64


def commit(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put("latents", torch.full((1, 4, 8, 8), 3.0), "BChw")
        writer.put_file("note.txt", b"three")


def calls_of(root: Path, work: Callable[[], object]) -> int:
    """Return how many calls of `work` take room when nothing fails."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, root, once=False)
        work()
    return len(disk.kinds)


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreAccessError)],
)
def test_a_commit_that_fails_anywhere_promises_nothing(tmp_path: Path, code: int, error: type[StorageError]) -> None:
    store = ArtifactStore(tmp_path)
    commit(store, OLD)
    calls = calls_of(tmp_path, lambda: commit(store, NEW))
    assert calls > 15
    store.move_to_trash(NEW, "counted")
    shutil.rmtree(tmp_path / "manifests" / NEW[:2])  # so that each try makes this folder, as the first did
    for fails_at in range(1, calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, tmp_path, code, fails_at, once=False)
            with pytest.raises(error, match=os.strerror(code)) as caught:
                commit(store, NEW)
        assert str(tmp_path) in str(caught.value)
        assert store.find(NEW) is None
        assert torch.equal(store.read(OLD)["latents"], torch.full((1, 4, 8, 8), 3.0))
        assert len(list(tmp_path.glob("data/*"))) == 1
        assert not list(tmp_path.rglob("*.partial"))
        shutil.rmtree(tmp_path / "manifests" / NEW[:2], ignore_errors=True)
    commit(store, NEW)
    assert store.read_file(NEW, "note.txt") == b"three"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.EDQUOT, StoreFullError),
        (errno.EACCES, StoreAccessError),
        (errno.EPERM, StoreAccessError),
        (errno.EROFS, StoreAccessError),
    ],
)
def test_each_refusal_has_its_error(tmp_path: Path, code: int, error: type[StorageError]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, tmp_path, code, 5, once=False)
        with pytest.raises(error, match=f"{tmp_path}.*: {os.strerror(code)}") as caught:
            commit(ArtifactStore(tmp_path), NEW)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == code


def test_all_is_flushed_before_it_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power may fail right after the commit: by then every file and folder entry is on the disk."""
    order: list[tuple[int, int] | str] = []

    def fsync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        order.append((state.st_dev, state.st_ino))

    def link(source: Path, target: Path) -> None:
        order.append("link")
        real_link(source, target)

    def identity(path: Path) -> tuple[int, int]:
        return path.stat().st_dev, path.stat().st_ino

    real_link = os.link
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    commit(ArtifactStore(tmp_path), NEW)
    promised = order.index("link")
    manifest = tmp_path / "manifests" / NEW[:2] / f"{NEW}.json"
    for path in (*(tmp_path / "data").rglob("*"), tmp_path / "data", tmp_path, manifest):
        assert identity(path) in order[:promised], path
    assert order[promised:] == ["link", identity(manifest.parent)]


def test_a_checkpoint_that_fails_anywhere_leaves_the_one_before(tmp_path: Path) -> None:
    def save(step: int, value: float) -> None:
        checkpoints.save(step, {"latents": torch.full((8,), value)}, {"value": value})

    checkpoints = Checkpoints(ArtifactStore(tmp_path), OLD)
    save(1, 1.0)
    calls = calls_of(tmp_path, lambda: save(2, 2.0))
    for step in (2, 3):  # over a record of the same step, and beside it
        for fails_at in range(1, calls + 1):
            with pytest.MonkeyPatch.context() as patch:
                Disk(patch, tmp_path, errno.ENOSPC, fails_at, once=False)
                with pytest.raises(StoreFullError):
                    save(step, float(fails_at))
            newest = checkpoints.newest()
            assert newest is not None
            # the last call flushes the folder: the new record is in place then, and whole
            assert newest.meta["value"] == (2.0 if fails_at < calls else float(calls))
            assert torch.equal(newest.tensors["latents"], torch.full((8,), newest.meta["value"]))
        save(2, 2.0)
        (tmp_path / "steps" / OLD / "step-000003.json").unlink(missing_ok=True)
    assert not list(tmp_path.glob("trash/*"))


def test_a_run_record_that_fails_anywhere_stays_as_it_was(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run = RunRecord(run="night", spec={}, created="2026-11-23T20:00:00Z")  # type: ignore[arg-type]
    runs.create(run)
    calls = calls_of(tmp_path, lambda: runs.save(run))
    for fails_at in range(1, calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, tmp_path, errno.ENOSPC, fails_at, once=False)
            with pytest.raises(StoreFullError):
                runs.save(run.revised(state="done"))
        assert runs.load("night").state == ("running" if fails_at < calls else "done")


def test_a_lease_on_a_full_disk_says_so(tmp_path: Path, key: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, tmp_path, errno.ENOSPC, 1, once=False)
        with pytest.raises(StoreFullError), ArtifactStore(tmp_path / "s").lease(key):
            pytest.fail("the body must not run")


def test_other_errors_of_the_body_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="quota of the caller") as caught:  # noqa: SIM117
        with ArtifactStore(tmp_path).writing(NEW, stage="decode", version=1):
            raise OSError(errno.ENOSPC, "quota of the caller")
    assert not isinstance(caught.value, StorageError)


REAL = """
import sys, torch
from storage import ArtifactStore, StoreFullError, fingerprint
store = ArtifactStore(sys.argv[1])
committed = 0
try:
    while True:
        with store.writing(fingerprint(committed), stage="fill", version=1) as writer:
            writer.put("latents", torch.full((1, 4, 128, 128), float(committed)), "BChw")
        committed += 1
except StoreFullError as error:
    print(error)
assert 3 < committed < 16, committed
assert len(list(store.root.glob("data/*"))) == committed == len(store.list_keys())
assert all(store.read(fingerprint(i))["latents"].eq(i).all() for i in range(committed))
store.move_to_trash(fingerprint(0), "room")
print("committed", committed)
"""


@pytest.mark.thorough
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """4 MiB of memory as a file system of our own, where the kernel lets us have one."""
    mount = 'mount -t tmpfs -o size=4m none "$1"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, mount, "sh", tmp_path], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine gives no private mounts")
    done = subprocess.run(
        [*unshare, f'{mount} && exec "$2" -c "$3" "$1"', "sh", tmp_path, sys.executable, REAL],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert "no space left to write" in done.stdout
