"""The power goes at every point of a record of calls: what was acknowledged is there, the rest is whole or is not.

Every cut is tried with nothing kept that was not flushed, with everything, and with mixes drawn by a seed; states that
are equal are looked at once. `FREESCALE_CUTS=all pytest -s tests/faults/test_power_loss.py` looks at all of them.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from storage import (
    ArtifactNotFoundError,
    ArtifactStore,
    Checkpoints,
    RunNotFoundError,
    RunRecord,
    Runs,
    StorageError,
    Unfinished,
)
from tests.disk import Crash, Disk, build, crashes, nothing_more
from tests.storage.conftest import put_video

if TYPE_CHECKING:
    from pathlib import Path

ALL = os.environ.get("FREESCALE_CUTS") == "all"
SEED = int(os.environ.get("FREESCALE_SEED", "0"))
FIRST, SECOND, CLIP = "0" * 64, "1" * 64, "2" * 64
RUN = RunRecord(run="night", spec={"seed": 7}, created="2026-11-23T20:00:00Z")  # type: ignore[arg-type]
STATES = ("running", "interrupted", "done")


def save_step(root: Path, step: int, value: float) -> None:
    tensors = {"latents": torch.full((8,), value), "history0": torch.full((8,), -value)}
    Checkpoints(ArtifactStore(root), SECOND).save(step, tensors, {"value": value})


def commit(root: Path, key: str) -> None:
    store = ArtifactStore(root)
    with store.lease(key), store.writing(key, stage="decode", version=1) as writer:
        writer.put("latents", torch.full((1, 4, 8, 8), float(key[0])), "BChw")
        frames = [torch.full((1, 1, 4, 4), n, dtype=torch.uint8) for n in (3, 4)]
        put_video(store, writer, "clip", (1, 1, 2, 4, 4), torch.uint8, frames)
        writer.put_file("note.txt", key.encode())
    Checkpoints(store, key).clear()


def frame(index: int) -> torch.Tensor:
    return torch.full((1, 1, 4, 4), index + 3, dtype=torch.uint8)


def save_frames(root: Path) -> None:
    """Go on with a video of four frames: two more, and those are flushed."""
    unfinished = Unfinished(Checkpoints(ArtifactStore(root), CLIP))
    pieces = unfinished.array("clip", (1, 1, 4, 4, 4), torch.uint8)
    for index in pieces.missing[:2]:
        pieces.put(index, frame(index))
    unfinished.flush()


def frames_found(root: Path) -> int:
    """How many frames of that video are there, all of them right."""
    unfinished = Unfinished(Checkpoints(ArtifactStore(root), CLIP))
    pieces = unfinished.array("clip", (1, 1, 4, 4, 4), torch.uint8)
    assert all(torch.equal(found, frame(index)) for index, found in pieces.items())
    return len(pieces)


def save_run(root: Path, number: int) -> None:
    Runs(root).save(RUN.revised(state=STATES[number]))


def night(root: Path, disk: Disk) -> None:
    """A run of two stages and a half, the second with checkpoints, one of which replaces another; each end is noted."""
    save_run(root, 0)
    disk.note("run 0")
    commit(root, FIRST)
    disk.note(f"artifact {FIRST}")
    for save, step in enumerate((1, 2, 2, 3)):
        save_step(root, step, float(save))
        disk.note(f"save {save}")
    for attempt in range(2):
        save_frames(root)
        disk.note(f"frames {attempt}")
    save_run(root, 1)
    disk.note("run 1")
    commit(root, SECOND)
    disk.note(f"artifact {SECOND}")
    save_run(root, 2)
    disk.note("run 2")


def has_artifact(root: Path, key: str) -> bool:
    """Whether an artifact is there; if it is, it must be whole."""
    store = ArtifactStore(root)
    try:
        tensors = store.read(key)
    except ArtifactNotFoundError:
        return False
    assert torch.equal(tensors["latents"], torch.full((1, 4, 8, 8), float(key[0])))
    assert tensors["clip"].flatten().tolist() == [3] * 16 + [4] * 16
    assert store.read_file(key, "note.txt") == key.encode()
    return True


def last_save(root: Path) -> int:
    """Which save the newest checkpoint is of, -1 if there is none; it must be whole."""
    newest = Checkpoints(ArtifactStore(root), SECOND).newest()
    if newest is None:
        return -1
    assert torch.equal(newest.tensors["latents"], torch.full((8,), newest.meta["value"]))
    assert torch.equal(newest.tensors["history0"], torch.full((8,), -newest.meta["value"]))
    return int(newest.meta["value"])


def last_run(root: Path) -> int:
    try:
        return STATES.index(Runs(root).load("night").state)
    except RunNotFoundError:
        return -1


def check(root: Path, noted: list[str], doing: str) -> None:
    """`noted` was acknowledged and `doing` begun: all of the one is there, and of the other all or nothing."""
    for key in (FIRST, SECOND):
        expected = f"artifact {key}" in noted
        assert has_artifact(root, key) is expected or (doing == f"artifact {key}" and not expected)
    runs = sum(note.startswith("run") for note in noted)
    assert last_run(root) - (runs - 1) in ((0, 1) if doing.startswith("run") else (0,))
    if f"artifact {SECOND}" not in noted and not has_artifact(root, SECOND):  # once it is there, they are cleared
        saves = sum(note.startswith("save") for note in noted)
        assert last_save(root) - (saves - 1) in ((0, 1) if doing.startswith("save") else (0,))
    assert frames_found(root) >= 2 * sum(note.startswith("frames") for note in noted)
    assert not (root / "trash").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("every", [10, pytest.param(4, marks=pytest.mark.thorough)])
def test_a_power_cut_at_any_point_tears_and_loses_nothing(tmp_path: Path, every: int) -> None:
    """By default at one point of ten."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, build({}, tmp_path / "watched"))
        night(tmp_path / "watched", disk)
    log, draw = disk.log, random.Random(SEED)
    states = crashes(log, draw, mixes=4 if ALL else 1)
    looked = 0
    for done, tree in states if ALL else itertools.islice(states, draw.randrange(every), None, every):
        root = build(tree, tmp_path / "crashed")
        notes = [op.path for op in log[:done] if op.kind == "note"]
        doing = next((op.path for op in log[done:] if op.kind == "note"), "nothing")
        try:
            check(root, notes, doing)
            if looked % 8 == 0:
                go_on(root)
        except AssertionError as error:
            raise AssertionError(f"cut after call {done} of {len(log)}, doing {doing}: {sorted(tree)}") from error
        shutil.rmtree(root)
        looked += 1
    print(f"\n{len(log) - len(STATES) - 8} calls, cut at each: {looked} different states of the disk")
    assert looked > 300 // every


def go_on(root: Path) -> None:
    """After the power is back, the same work can be done."""
    with pytest.MonkeyPatch.context() as patch:
        night(root, Disk(patch, root))
    assert has_artifact(root, FIRST)
    assert has_artifact(root, SECOND)
    assert last_run(root) == 2


@pytest.mark.parametrize("spared", ["file", "folder", "data"])
def test_a_missing_flush_is_noticed(tmp_path: Path, spared: str) -> None:
    """The replay itself: leave out the flush of files, of folders, of data before the name, and a cut finds it."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, build({}, tmp_path / "watched"))
        night(tmp_path / "watched", disk)
    folders = {".", *(op.path for op in disk.log if op.kind == "mkdir")}
    left_out = {
        "file": lambda op: op.path not in folders,
        "folder": lambda op: op.path.startswith("manifests/") and op.path in folders,
        "data": lambda op: op.path.startswith("data/"),
    }[spared]
    log = [op for op in disk.log if op.kind != "fsync" or not left_out(op)]
    crash = Crash()
    for op in log:
        crash.apply(op)
    with pytest.raises((AssertionError, StorageError)):
        check(
            build(crash.tree(nothing_more), tmp_path / "end"), [op.path for op in log if op.kind == "note"], "nothing"
        )
