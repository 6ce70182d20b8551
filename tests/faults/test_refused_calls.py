"""Each call to the operating system that a commit makes, refused once: the caller hears it, and nothing is lost.

By default the first and the last call of each kind meet one error each; with `FREESCALE_REFUSALS=all`,
`pytest -s tests/faults/test_refused_calls.py` tries every call with every error and prints the calls by kind.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
import zarr

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
from tests.disk import REFUSALS, Crash, Disk, Tree, build, everything, nothing_more, tree_of
from tests.toys import points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ALL = os.environ.get("FREESCALE_REFUSALS") == "all"
OLD, NEW, CLIP = "0" * 64, "1" * 64, "2" * 64


def commit(root: Path, key: str = NEW, value: float = 2.0) -> None:
    with ArtifactStore(root).writing(key, stage="decode", version=1) as writer:
        writer.put("latents", torch.full((1, 4, 8, 8), value), "BChw")
        writer.put("clip", torch.full((1, 3, 2, 8, 8), value).to(torch.bfloat16), "BCFHW")
        writer.put_file("note.txt", str(value).encode())


def is_committed(root: Path, key: str = NEW, value: float = 2.0) -> bool:
    """Whether the artifact is there; if it is, it must be whole."""
    store = ArtifactStore(root)
    try:
        tensors = store.read(key)
    except ArtifactNotFoundError:
        assert not (root / "trash").exists()
        return False
    assert torch.equal(tensors["latents"], torch.full((1, 4, 8, 8), value))
    assert torch.equal(tensors["clip"], torch.full((1, 3, 2, 8, 8), value).to(torch.bfloat16))
    assert store.read_file(key, "note.txt") == str(value).encode()
    return True


def save_step(root: Path, step: int) -> None:
    tensors = {"latents": torch.full((8,), float(step)), "history0": torch.full((8,), -float(step))}
    Checkpoints(ArtifactStore(root), OLD).save(step, tensors, {"step": step})


def step_of(root: Path) -> int | None:
    """The newest checkpoint, which must be whole; none may have been found damaged."""
    newest = Checkpoints(ArtifactStore(root), OLD).newest()
    assert not (root / "trash").exists()
    if newest is None:
        return None
    assert newest.meta == {"step": newest.step}
    assert torch.equal(newest.tensors["latents"], torch.full((8,), float(newest.step)))
    assert torch.equal(newest.tensors["history0"], torch.full((8,), -float(newest.step)))
    return newest.step


def save_frames(root: Path, count: int = 3) -> None:
    """Go on with a video until `count` of its four frames are there, and flush them."""
    unfinished = Unfinished(Checkpoints(ArtifactStore(root), CLIP))
    pieces = unfinished.array("clip", (1, 3, 4, 8, 8), torch.float16)
    for index in range(count):
        if index not in pieces:
            pieces.put(index, torch.full((1, 3, 8, 8), float(index)).half())
    unfinished.flush()


def frames_of(root: Path) -> int:
    """How many of them are there, which must be right; looked at in a copy, for who looks takes them over."""
    copy = root.with_name(f"{root.name}-copy")
    shutil.copytree(root, copy)
    pieces = Unfinished(Checkpoints(ArtifactStore(copy), CLIP)).array("clip", (1, 3, 4, 8, 8), torch.float16)
    assert all(torch.equal(frame, torch.full((1, 3, 8, 8), float(index)).half()) for index, frame in pieces.items())
    shutil.rmtree(copy)
    return len(pieces)


def record(state: str) -> RunRecord:
    return RunRecord(run="night", spec={"seed": 7}, state=state, created="2026-11-23T20:00:00Z")  # type: ignore[arg-type]


def state_of(root: Path) -> str | None:
    try:
        return Runs(root).load("night").state
    except RunNotFoundError:
        return None


def before(root: Path) -> None:
    """What was acknowledged before: an artifact, two checkpoints."""
    commit(root, OLD, 1.0)
    save_step(root, 1)
    save_step(root, 2)


def prepared(root: Path) -> None:
    before(root)
    Runs(root).create(record("running"))


class Case(NamedTuple):
    """A piece of work, what it starts from, and how to see whether it was done."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    is_done: Callable[[Path], bool]
    is_intact: Callable[[Path], bool]


def old_is_there(root: Path) -> bool:
    return is_committed(root, OLD, 1.0)


CASES = {
    "an artifact": Case(before, commit, is_committed, lambda root: old_is_there(root) and step_of(root) == 2),
    "the first artifact": Case(lambda root: None, commit, is_committed, lambda root: True),
    "a checkpoint": Case(
        before, lambda root: save_step(root, 3), lambda root: step_of(root) == 3, lambda root: step_of(root) in (2, 3)
    ),
    "the first checkpoint": Case(
        lambda root: commit(root, OLD, 1.0),
        lambda root: save_step(root, 3),
        lambda root: step_of(root) == 3,
        old_is_there,
    ),
    "a frame": Case(
        lambda root: save_frames(root, 2),
        save_frames,
        lambda root: frames_of(root) == 3,
        lambda root: frames_of(root) in (2, 3),
    ),
    "the first frames": Case(before, save_frames, lambda root: frames_of(root) == 3, old_is_there),
    "a run record": Case(
        prepared,
        lambda root: Runs(root).save(record("done")),
        lambda root: state_of(root) == "done",
        lambda root: state_of(root) in ("running", "done"),
    ),
    "a new run": Case(
        before,
        lambda root: Runs(root).save(record("running")),
        lambda root: state_of(root) == "running",
        lambda root: state_of(root) in (None, "running"),
    ),
}


@pytest.fixture(autouse=True)
def _one_chunk_at_a_time() -> Iterator[None]:
    """Zarr's threads take turns, so that the calls come in the same order each time."""
    with zarr.config.set({"async.concurrency": 1}):
        yield


@pytest.fixture(params=points(CASES, kept=lambda name: name == "a checkpoint"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def fresh(tmp_path: Path, tree: Tree) -> Iterator[Path]:
    """Folders that hold `tree`, one after another."""
    number = 0
    while True:
        number += 1
        yield build(tree, tmp_path / str(number))


def test_a_refused_call_is_heard_and_costs_nothing(case: Case, tmp_path: Path) -> None:
    start = tmp_path / "start"
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, build({}, start))  # spares the flushes
        case.prepare(start)
    tree = tree_of(start)
    roots = fresh(tmp_path, tree)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, root := next(roots))
        case.work(root)
    assert case.is_done(root)
    refusals = Counter[str]()
    for number in range(1, len(disk.kinds) + 1) if ALL else ends(disk.kinds):
        for code in REFUSALS if ALL else (REFUSALS[number % len(REFUSALS)],):
            refusals[_refused(case, next(roots), tmp_path, tree, number, code)] += 1
    print(f"\n{len(disk.kinds)} calls, {refusals.total()} refusals: {dict(sorted(refusals.items()))}")
    assert {"open", "write", "fsync", "close"} <= refusals.keys()
    assert refusals["rename"] + refusals["link"]


def ends(kinds: list[str]) -> list[int]:
    """The numbers (from 1) of the first and the last call of each kind."""
    firsts = {kind: kinds.index(kind) + 1 for kind in kinds}
    lasts = {kind: number for number, kind in enumerate(kinds, 1)}
    return sorted({*firsts.values(), *lasts.values()})


def _refused(case: Case, root: Path, tmp_path: Path, tree: Tree, number: int, code: int) -> str:
    """Do the work with one call refused, look at what is there, and do it again; the kind of that call."""
    heard: StorageError | None = None
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, root, code, number)
        try:
            case.work(root)
        except StorageError as error:
            heard = error
    (kind,) = disk.refused
    what = f"call {number}, {kind}: {os.strerror(code)}"
    assert heard is None or (isinstance(heard, OSError) and heard.errno == code and str(root) in str(heard)), what
    assert case.is_intact(root), what
    done = case.is_done(root)
    assert heard or done, f"nobody heard of {what}"
    _crashed(case, disk, tmp_path, tree, what, is_done=heard is None)
    with pytest.MonkeyPatch.context() as patch:
        again = Disk(patch, root)
        case.work(root)
    assert case.is_done(root), what
    disk.log += again.log
    _crashed(case, disk, tmp_path, tree, what, is_done=True)
    shutil.rmtree(root)
    return kind


def _crashed(case: Case, disk: Disk, tmp_path: Path, tree: Tree, what: str, is_done: bool) -> None:
    """The power goes right after: what was acknowledged is there, and the rest is whole or is not."""
    crash = Crash(tree)
    for op in disk.log:
        crash.apply(op)
    for choose in (nothing_more,) if is_done else (nothing_more, everything):
        root = build(crash.tree(choose), tmp_path / "crashed")
        assert case.is_intact(root), f"power lost after {what}"
        assert case.is_done(root) or not is_done, f"lost with the power after {what}"
        shutil.rmtree(root)
