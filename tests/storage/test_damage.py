"""No byte that differs from the one committed is ever returned."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from storage import DamagedArtifactError, StoreAccessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage import ArtifactStore

SAMPLES = 48  # flipped bits a file


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def files_of(store: ArtifactStore) -> list[Path]:
    """Every file of the one artifact in the store, its manifest included."""
    return sorted(path for part in ("data", "manifests") for path in (store.root / part).rglob("*") if path.is_file())


def test_any_flipped_bit_is_noticed(store: ArtifactStore, artifact: str) -> None:
    """Sampled over every file: chunks, their checksums, `zarr.json`, plain files, the manifest."""
    draw = random.Random(0)
    files = files_of(store)
    assert len(files) == 7  # two arrays of one and two chunks, a file, a manifest
    for path in files:
        size = 8 * path.stat().st_size
        for bit in {0, size - 1, *(draw.randrange(size) for _ in range(SAMPLES))}:
            flip(path, bit)
            assert store.verify(artifact) is not None, f"bit {bit} of {path}"
            flip(path, bit)
    assert store.verify(artifact) is None


@pytest.mark.parametrize("index", range(7))
def test_a_damaged_artifact_goes_to_the_trash_and_is_made_again(
    store: ArtifactStore, artifact: str, index: int
) -> None:
    expected = store.read(artifact)
    damaged = files_of(store)[index]
    flip(damaged, 100)
    with pytest.raises(DamagedArtifactError, match="was damaged and is moved to the trash"):
        store.read(artifact)
    assert store.find(artifact) is None
    assert damaged.name in {path.name for path in (store.root / "trash").rglob("*")} or damaged.suffix == ".json"
    with store.writing(artifact, stage="decode", version=1) as writer:
        for name, tensor in expected.items():
            writer.put(name, tensor)
    assert all(torch.equal(store.read(artifact)[name], tensor) for name, tensor in expected.items())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        lengthen,
        become_a_folder,
        lambda path: path.unlink(),
        lambda path: shutil.rmtree(path.parent),
    ],
    ids=["truncated", "empty", "longer", "a folder", "deleted", "folder deleted"],
)
@pytest.mark.parametrize("pattern", ["latents.zarr/c/0/0/0/0", "video.zarr/zarr.json", "files/note.txt"])
def test_broken_files_are_noticed(
    store: ArtifactStore, artifact: str, pattern: str, damage: Callable[[Path], object]
) -> None:
    """Zarr alone would read a deleted chunk as zeros."""
    damage(next(store.root.glob(f"data/*/{pattern}")))
    with pytest.raises(DamagedArtifactError):
        store.read_file(artifact, "note.txt") if pattern.startswith("files") else store.read(artifact)
    assert store.find(artifact) is None


def test_a_damaged_manifest_is_as_good_as_none(store: ArtifactStore, artifact: str) -> None:
    flip(next(store.root.glob("manifests/*/*.json")), 999)
    assert store.find(artifact) is None
    assert list(store.root.glob(f"trash/{artifact}-*/{artifact}.json"))


def test_a_read_error_of_the_device_is_no_damage(
    store: ArtifactStore, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read now may be readable again, when the disk is back."""

    def refuse(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("storage.backend.Path.read_bytes", refuse)
        with pytest.raises(StoreAccessError, match=f"cannot read or write .*{artifact}.json: Input/output error"):
            store.find(artifact)
        with pytest.raises(StoreAccessError):
            store.read(artifact)
    assert store.read(artifact)


def test_bytes_that_change_between_check_and_use_are_noticed(
    store: ArtifactStore, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look at a chunk is guarded by its own crc32c."""
    from storage import arrays

    def read_array(*args: object) -> torch.Tensor:
        flip(next(store.root.glob("data/*/latents.zarr/c/0/0/0/0")), 77)
        return original(*args)  # type: ignore[arg-type]

    original = arrays.read_array
    monkeypatch.setattr(arrays, "read_array", read_array)
    with pytest.raises(DamagedArtifactError, match="differs from its checksum"):
        store.read(artifact)
