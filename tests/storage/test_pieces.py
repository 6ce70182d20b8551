"""Arrays in the making: what was whole is taken over by the next attempt, what is torn is not, nobody is disturbed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from storage import Checkpoints, Unfinished
from storage.manifest import StepRecord, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from storage import ArtifactStore, Pieces

SHAPE = (1, 3, 5, 8, 10)
CLIP = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).half()
CHUNK, RECORD = "image.zarr/c/0/0/2/0/0", "pieces/image-000002.json"


def attempt(store: ArtifactStore, key: str) -> tuple[Unfinished, Pieces]:
    unfinished = Unfinished(Checkpoints(store, key))
    return unfinished, unfinished.array("image", SHAPE, torch.float16)


def fill(pieces: Pieces, *indices: int, video: Tensor = CLIP) -> None:
    for index in indices:
        pieces.put(index, video[:, :, index])


def commit(store: ArtifactStore, key: str, pieces: Pieces) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put_pieces("image", pieces)
    Checkpoints(store, key).clear()


def test_the_next_attempt_has_what_is_whole(store: ArtifactStore, key: str) -> None:
    assert not Checkpoints(store, key).folder.exists(), "nothing lies there before anything is made"
    fill(attempt(store, key)[1], 0, 1, 3)
    unfinished, pieces = attempt(store, key)
    assert (len(unfinished), list(pieces), pieces.missing) == (3, [0, 1, 3], [2, 4])
    assert all(torch.equal(frame, CLIP[:, :, index]) for index, frame in pieces.items())
    with pytest.raises(KeyError):
        pieces[2]
    fill(pieces, 2)
    pieces = attempt(store, key)[1]
    fill(pieces, *pieces.missing)
    commit(store, key, pieces)
    assert torch.equal(store.read(key)["image"], CLIP)
    assert not Checkpoints(store, key).folder.exists()
    assert len(Unfinished(Checkpoints(store, key))) == 0


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other_format(data: bytes) -> bytes:
    return seal({**unseal(data), "format_version": 2})


def of_another_call(data: bytes) -> bytes:
    return StepRecord.from_bytes(data).revised(key="f" * 64).to_bytes()


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        (CHUNK, cut),
        (CHUNK, lambda data: bytes(len(data))),
        (CHUNK, lambda data: b""),
        (CHUNK, None),
        (RECORD, cut),
        (RECORD, lambda data: b""),
        (RECORD, None),
        (RECORD, other_format),
        (RECORD, of_another_call),
    ],
    ids=["cut", "zeros", "empty", "gone", "record cut", "record empty", "record gone", "other format", "other call"],
)
def test_a_torn_piece_is_made_again(
    store: ArtifactStore, key: str, what: str, damage: Callable[[bytes], bytes] | None
) -> None:
    unfinished, pieces = attempt(store, key)
    fill(pieces, 0, 1, 2)
    path = unfinished.folder / what
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    unfinished, pieces = attempt(store, key)
    assert (len(unfinished), pieces.missing) == (2, [2, 3, 4])
    fill(pieces, *pieces.missing)
    commit(store, key, pieces)
    assert torch.equal(store.read(key)["image"], CLIP)


def test_a_piece_torn_in_one_attempt_is_taken_from_another(store: ArtifactStore, key: str) -> None:
    first = attempt(store, key)
    fill(first[1], 0, 2)
    second = attempt(store, key)
    for unfinished, what in ((first[0], "image.zarr/c/0/0/0/0/0"), (second[0], CHUNK)):
        path = unfinished.folder / what
        path.unlink()  # a link of the other's file
        path.write_bytes(b"torn")
    assert attempt(store, key)[1].missing == [1, 3, 4]


def test_who_was_stopped_and_wakes_disturbs_nobody(store: ArtifactStore, key: str) -> None:
    """It writes other bits over the frames it had, makes others, and clears what it knows of."""
    stopped = Checkpoints(store, key)
    old = Unfinished(stopped).array("image", SHAPE, torch.float16)
    fill(old, 0, 1)
    unfinished, successor = attempt(store, key)
    fill(old, 0, 2, video=CLIP + 1)
    fill(successor, 2, 3)
    stopped.clear()
    fill(successor, 4)
    unfinished.flush()
    assert attempt(store, key)[1].missing == []
    commit(store, key, successor)
    assert torch.equal(store.read(key)["image"], CLIP)


def test_the_artifact_does_not_change_with_what_it_was_linked_from(store: ArtifactStore, key: str) -> None:
    pieces = attempt(store, key)[1]
    fill(pieces, *range(5))
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put_pieces("image", pieces)
        fill(pieces, 3, video=CLIP + 1)
    fill(pieces, 2, video=CLIP + 1)
    assert torch.equal(store.read(key)["image"], CLIP)


def test_pieces_of_an_array_laid_out_otherwise_are_not_taken(store: ArtifactStore, key: str) -> None:
    fill(attempt(store, key)[1], 0, 1)
    other = Unfinished(Checkpoints(store, key)).array("image", (1, 3, 4, 8, 10), torch.float16)
    assert other.missing == [0, 1, 2, 3]
    assert Unfinished(Checkpoints(store, key)).array("other", SHAPE, torch.float16).missing == [0, 1, 2, 3, 4]


def test_bands_of_a_picture(store: ArtifactStore, key: str) -> None:
    picture = torch.randn((1, 3, 1030, 1030), generator=torch.Generator().manual_seed(2)).half()
    bands = Unfinished(Checkpoints(store, key)).array("image", picture.shape, torch.float16)
    bands.put(0, picture[:, :, :1024])
    with pytest.raises(ValueError, match=r"piece 1 is \(1, 3, 7, 1030\)"):
        bands.put(1, picture[:, :, 1023:])
    bands = Unfinished(Checkpoints(store, key)).array("image", picture.shape, torch.float16)
    assert bands.missing == [1]
    assert torch.equal(bands[0], picture[:, :, :1024])
    bands.put(1, picture[:, :, 1024:])
    commit(store, key, bands)
    assert torch.equal(store.read(key)["image"], picture)


@pytest.mark.parametrize(
    ("index", "piece"),
    [(0, CLIP[:, :, 0, :7]), (0, CLIP[:, :, 0].float()), (0, CLIP), (5, CLIP[:, :, 0]), (-1, CLIP[:, :, 0])],
)
def test_what_is_no_piece_is_refused(store: ArtifactStore, key: str, index: int, piece: Tensor) -> None:
    pieces = attempt(store, key)[1]
    with pytest.raises(ValueError, match=f"image: piece {index} is"):
        pieces.put(index, piece)
    assert list(pieces) == []
    with pytest.raises(ValueError, match="lacks 5 of its pieces, the first of them 0"):
        commit(store, key, pieces)
    assert store.find(key) is None


def test_what_is_passed_over_is_said(store: ArtifactStore, key: str, caplog: pytest.LogCaptureFixture) -> None:
    unfinished, pieces = attempt(store, key)
    fill(pieces, 2)
    (unfinished.folder / CHUNK).write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        attempt(store, key)
    assert "piece 2 of image is made again" in caplog.text


def test_a_flush_with_nothing_new_touches_nothing(store: ArtifactStore, key: str, tmp_path: Path) -> None:
    Unfinished(Checkpoints(store, key)).flush()
    assert not list(tmp_path.rglob("steps/*/*"))
