"""Bits flipped in every kind of file of a store: each is found before its bytes are used, and nothing else is lost.

`FREESCALE_FLIPS=1000 pytest -s tests/faults/test_bit_flips.py` is the long version; it prints where the bits fell.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from storage import ArtifactStore, Checkpoints, DamagedArtifactError, DamagedRunError, RunRecord, Runs, Unfinished

if TYPE_CHECKING:
    from storage import Pieces

FLIPS = int(os.environ.get("FREESCALE_FLIPS", "100"))
SEED = int(os.environ.get("FREESCALE_SEED", "0"))
KEY, GOING, FILLING = "0" * 64, "1" * 64, "2" * 64
RUN = RunRecord(run="night", spec={"prompt": "ein Ring, grün"}, created="2026-11-23T20:00:00Z")  # type: ignore[arg-type]
LATENTS = torch.arange(256.0).reshape(1, 4, 8, 8)
CLIP = torch.arange(384).reshape(1, 3, 2, 8, 8).to(torch.uint8)
NOTE = b"a yellow ring on a night sky"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an artifact of arrays and a file, two checkpoints of another, two frames of a third, and a run."""
    root = tmp_path_factory.mktemp("pristine") / "store"
    with ArtifactStore(root).writing(KEY, stage="decode", version=1, params={"seed": 7}) as writer:
        writer.put("latents", LATENTS, "BChw")
        writer.put("clip", CLIP, "BCFHW")
        writer.put_file("note.txt", NOTE)
    for step in (1, 2):
        Checkpoints(ArtifactStore(root), GOING).save(step, {"latents": LATENTS + step}, {"step": step})
    pieces = frames_of(root)
    for index in range(2):
        pieces.put(index, CLIP[:, :, index])
    Runs(root).create(RUN)
    return root


def frames_of(root: Path) -> Pieces:
    return Unfinished(Checkpoints(ArtifactStore(root), FILLING)).array("clip", CLIP.shape, CLIP.dtype)


def frames_found(root: Path) -> int:
    """How many frames are there; they must be equal."""
    found = frames_of(root)
    assert all(torch.equal(frame, CLIP[:, :, index]) for index, frame in found.items())
    return len(found)


def kind_of(path: Path) -> str:
    """What a bit of this file belongs to."""
    if path.parts[0] == "data":
        return "a file" if "files" in path.parts else "an array"
    if FILLING in path.parts:
        return "a frame"
    return {"manifests": "a manifest", "steps": "a checkpoint", "runs": "a run record"}[path.parts[0]]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def is_artifact_read(root: Path) -> bool:
    """Whether the artifact is handed out, by each of the ways in which it is; what is handed out must be equal."""
    store = ArtifactStore(root)
    try:
        tensors = store.read(KEY)
    except DamagedArtifactError:
        assert store.find(KEY) is None
        return False
    assert torch.equal(tensors["latents"], LATENTS)
    assert torch.equal(tensors["clip"], CLIP)
    assert store.read_file(KEY, "note.txt") == NOTE
    return True


def newest_step(root: Path) -> int | None:
    newest = Checkpoints(ArtifactStore(root), GOING).newest()
    if newest is None:
        return None
    assert newest.meta == {"step": newest.step}
    assert torch.equal(newest.tensors["latents"], LATENTS + newest.step)
    return newest.step


def is_run_read(root: Path) -> bool:
    try:
        assert Runs(root).load("night") == RUN
    except DamagedRunError:
        return False
    return True


@pytest.mark.thorough
def test_every_flipped_bit_is_found_before_use(pristine: Path, tmp_path: Path) -> None:
    """As many flips for each file, as many files of each kind as there are."""
    draw, found = random.Random(SEED), Counter[str]()
    files = sorted(path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file())
    files = [path for path in files if FILLING not in path.parts or path.name != "zarr.json"]  # that one is made anew
    steps = Path("steps", GOING)
    older = {"step-000001.json", json.loads((pristine / steps / "step-000001.json").read_bytes())["data"]}
    root = tmp_path / "store"
    assert (is_artifact_read(pristine), newest_step(pristine), is_run_read(pristine)) == (True, 2, True)
    for number in range(FLIPS):
        path = files[number % len(files)]
        kind, is_older = kind_of(path), not older.isdisjoint(path.parts)
        shutil.copytree(pristine, root)
        bit = draw.randrange(8 * (root / path).stat().st_size)
        flip(root / path, bit)
        if is_older:
            (root / steps / "step-000002.json").unlink()  # so that the one before is to be used
        step = {True: None, False: 1}[is_older] if kind == "a checkpoint" else 2
        assert frames_found(root) == (1 if kind == "a frame" else 2), f"bit {bit} of {path}"
        expected = (kind in {"a checkpoint", "a frame", "a run record"}, step, kind != "a run record")
        assert (is_artifact_read(root), newest_step(root), is_run_read(root)) == expected, f"bit {bit} of {path}"
        shutil.rmtree(root)
        found[kind] += 1
    print(f"\n{found.total()} bits flipped, all found: {dict(sorted(found.items()))}")
    assert found.keys() == {"an array", "a file", "a manifest", "a checkpoint", "a frame", "a run record"}
