from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from storage import Checkpoints, InvalidNameError, fingerprint
from storage.manifest import seal, unseal

if TYPE_CHECKING:
    from pathlib import Path

    from storage import ArtifactStore


@pytest.fixture
def checkpoints(store: ArtifactStore, key: str) -> Checkpoints:
    return Checkpoints(store, key)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        latents = torch.full((1, 4, 8, 8), float(step)).to(torch.bfloat16)
        checkpoints.save(step, {"latents": latents, "denoised": latents.float()}, {"history": ["denoised"], "n": step})


def step_found(checkpoints: Checkpoints) -> int | None:
    newest = checkpoints.newest()
    return newest.step if newest else None


def flip_a_chunk(checkpoints: Checkpoints, step: int) -> None:
    record = unseal((checkpoints.folder / f"step-{step:06d}.json").read_bytes())
    chunk = checkpoints.folder / record["data"] / "latents.zarr/c/0/0/0/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 4]) + chunk.read_bytes()[1:])


def test_the_newest_comes_back_whole(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    save(checkpoints, 4, 12)
    newest = checkpoints.newest()
    assert newest is not None
    step, tensors, meta = newest
    assert (step, meta) == (12, {"history": ["denoised"], "n": 12})
    assert tensors["latents"].dtype == torch.bfloat16
    assert torch.equal(tensors["denoised"], torch.full((1, 4, 8, 8), 12.0))


def test_two_are_kept(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, 2, 3, 40)
    assert checkpoints.steps() == [40, 3]
    assert len([path for path in checkpoints.folder.iterdir() if path.is_dir()]) == 2


def test_a_damaged_newest_is_skipped(checkpoints: Checkpoints, store: ArtifactStore) -> None:
    save(checkpoints, 10, 12)
    flip_a_chunk(checkpoints, 12)
    assert step_found(checkpoints) == 10
    assert checkpoints.steps() == [10]
    assert len(list(store.root.glob("trash/*-step-000012-*"))) == 1
    flip_a_chunk(checkpoints, 10)
    assert checkpoints.newest() is None
    save(checkpoints, 11)
    assert step_found(checkpoints) == 11


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-3], lambda data: b"", lambda data: data.replace(b"12", b"13")],
    ids=["cut", "empty", "another number"],
)
def test_a_damaged_record_is_skipped(checkpoints: Checkpoints, damage: Any) -> None:
    save(checkpoints, 10, 12)
    path = checkpoints.folder / "step-000012.json"
    path.write_bytes(damage(path.read_bytes()))
    assert step_found(checkpoints) == 10
    save(checkpoints, 11)  # sweeps the folder that has no record any more
    assert len([path for path in checkpoints.folder.iterdir() if path.is_dir()]) == 2


def test_a_record_of_another_call_is_not_taken(store: ArtifactStore, checkpoints: Checkpoints) -> None:
    other = Checkpoints(store, fingerprint("another call"))
    save(other, 30)
    save(checkpoints, 10)
    (checkpoints.folder / "step-000030.json").write_bytes((other.folder / "step-000030.json").read_bytes())
    (checkpoints.folder / "step-000031.json").write_bytes((checkpoints.folder / "step-000010.json").read_bytes())
    assert step_found(checkpoints) == 10


def test_a_record_of_a_later_format_is_passed_over(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10, 12)
    path = checkpoints.folder / "step-000012.json"
    path.write_bytes(seal({**unseal(path.read_bytes()), "format_version": 2}))
    assert step_found(checkpoints) == 10
    assert path.exists()


def test_a_step_is_replaced_as_a_whole(checkpoints: Checkpoints) -> None:
    checkpoints.save(7, {"latents": torch.zeros(4), "gone": torch.zeros(4)}, {"try": 1})
    checkpoints.save(7, {"latents": torch.ones(4)}, {"try": 2})
    newest = checkpoints.newest()
    assert newest is not None
    assert (list(newest.tensors), newest.meta) == (["latents"], {"try": 2})
    assert len(list(checkpoints.folder.iterdir())) == 2  # one record, one folder


def test_leftovers_of_a_crash_are_not_seen_and_swept(checkpoints: Checkpoints) -> None:
    save(checkpoints, 3)
    (checkpoints.folder / ("f" * 32)).mkdir()
    (checkpoints.folder / ".step-000009.json.0.partial").write_bytes(b"{")
    (checkpoints.folder / "step-x.json").write_bytes(b"{}")
    assert step_found(checkpoints) == 3
    save(Checkpoints(checkpoints.store, checkpoints.key), 4)
    assert len(list(checkpoints.folder.iterdir())) == 5  # two records, two folders, and the file of someone else


def test_who_lost_the_lease_deletes_nothing_that_the_next_may_be_filling(
    store: ArtifactStore, checkpoints: Checkpoints, key: str
) -> None:
    save(checkpoints, 3)
    successor = Checkpoints(store, key)
    filling = successor.folder / ("f" * 32)
    (filling / "latents.zarr").mkdir(parents=True)
    save(successor, 4)
    save(checkpoints, 4, 5)  # stopped after step 3, it wakes and goes on
    assert step_found(successor) == 5
    checkpoints.clear()
    assert (filling / "latents.zarr").exists()
    save(successor, 5)
    assert step_found(successor) == 5
    Checkpoints(store, key).clear()
    assert not successor.folder.exists()


def test_a_call_is_cleared_alone(store: ArtifactStore, checkpoints: Checkpoints) -> None:
    other = Checkpoints(store, fingerprint("another call"))
    save(checkpoints, 1, 2)
    save(other, 5)
    checkpoints.clear()
    checkpoints.clear()
    assert checkpoints.newest() is None
    assert not checkpoints.folder.exists()
    assert step_found(other) == 5


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(store: ArtifactStore, checkpoints: Checkpoints) -> None:
    wrong: tuple[int, dict[str, Any], dict[str, Any]]
    for wrong in ((-1, {}, {}), (1, {}, {"sigma": float("nan")}), (1, {}, {"history": {1}})):
        with pytest.raises((ValidationError, ValueError)):
            checkpoints.save(*wrong)
    for name in ("../latents", "", ".."):
        with pytest.raises(InvalidNameError):
            checkpoints.save(1, {name: torch.zeros(1)})
    with pytest.raises(InvalidNameError):
        Checkpoints(store, "../../home")
    assert checkpoints.newest() is None
    assert not checkpoints.folder.exists() or not list(checkpoints.folder.iterdir())


def test_steps_are_ordered_by_number(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 999_999, 1_000_000)
    assert checkpoints.steps() == [1_000_000, 999_999]
    assert step_found(checkpoints) == 1_000_000
