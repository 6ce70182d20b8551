"""Videos frame by frame: what was written comes back, too few or other frames are refused, damage is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from storage import ArtifactStore, Checkpoints, DamagedArtifactError, fingerprint
from tests.storage.conftest import put_video

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

SHAPE = (1, 3, 4, 8, 10)
KEY = fingerprint("a video")


def video(dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randint(-9, 9, SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    values[:, :, 2] = 0  # a frame of zeros is written like any other
    return values


def put(store: ArtifactStore, frames: Iterable[Tensor], dtype: torch.dtype = torch.float16) -> None:
    with store.writing(KEY, stage="decode", version=1) as writer:
        put_video(store, writer, "image", SHAPE, dtype, frames)
        (writer.files_folder() / "large.bin").write_bytes(b"large")
    Checkpoints(store, KEY).clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.float32])
def test_frames_come_back_lazily_and_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    store, given = ArtifactStore(tmp_path), video(dtype)
    put(store, given.unbind(2), dtype)
    frames = store.open_frames(KEY)["image"]
    assert (len(frames), frames.shape, frames.dtype) == (4, SHAPE, str(dtype).removeprefix("torch."))
    assert all(torch.equal(frame, given[:, :, index]) for index, frame in enumerate(frames))
    assert torch.equal(store.read(KEY)["image"], given)
    assert len(list(tmp_path.rglob("image.zarr/c/0/0/*/0/0"))) == 4
    assert store.file_path(KEY, "large.bin").read_bytes() == b"large"


@pytest.mark.parametrize("frames", [video().unbind(2)[:3], [*video().unbind(2)[:3], torch.zeros(1, 3, 8, 9)]])
def test_other_frames_than_said_leave_nothing(tmp_path: Path, frames: list[Tensor]) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 of its pieces, the first of them 3|piece 3 is \(1, 3, 8, 9\)"):
        put(store, frames)
    assert store.find(KEY) is None
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("what", ["c/0/0/1/0/0", "large.bin"])
def test_damage_is_found_before_anything_is_read(tmp_path: Path, what: str) -> None:
    store = ArtifactStore(tmp_path)
    put(store, video().unbind(2))
    path = next(p for p in tmp_path.rglob(what.rsplit("/", 1)[-1]) if p.as_posix().endswith(what))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DamagedArtifactError):
        store.open_frames(KEY)
    assert store.find(KEY) is None
