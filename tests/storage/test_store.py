from __future__ import annotations

import pickle
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from storage import ArtifactNotFoundError, DamagedArtifactError, InvalidNameError, fingerprint
from storage.manifest import seal, unseal

if TYPE_CHECKING:
    from pathlib import Path

    from storage import ArtifactStore

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\\b",
    ".hidden",
    "a\0b",
    "a\n",
    "é",
    "-a",
    "x" * 121,
    None,
    3,
]


def folders(store: ArtifactStore) -> set[str]:
    return {path.name for path in store.root.glob("data/*")}


def test_what_was_put_is_read(store: ArtifactStore, artifact: str) -> None:
    manifest = store.find(artifact)
    assert manifest is not None
    assert (manifest.key, manifest.stage, manifest.level) == (artifact, "decode", 1)
    assert set(manifest.files) >= {"files/note.txt", "latents.zarr/zarr.json", "video.zarr/c/0/0/1/0/0"}
    tensors = store.read(artifact)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "latents": (1, 4, 8, 8),
        "video": (1, 3, 2, 8, 8),
    }
    assert tensors["video"].dtype == torch.bfloat16
    assert store.read_file(artifact, "note.txt") == b"a yellow ring on a night sky"
    assert store.list_keys() == [artifact]
    assert store.verify(artifact) is None
    assert store.folder(manifest).is_dir()


def test_an_artifact_says_how_it_was_made(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=3, parents={"latents": fingerprint(0)}) as writer:
        writer.describe(device="cpu", libraries={"torch": "2.13"}, seconds=1.5, resumed_at=[12], peak_memory=7)
    manifest = store.find(key)
    assert manifest == writer.manifest
    assert (manifest.device, manifest.seconds, manifest.resumed_at, manifest.savings) == (
        "cpu",
        1.5,
        (12,),
        (),
    )
    assert manifest.parents == {"latents": fingerprint(0)}


def test_nothing_is_there_before_the_end(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put("latents", torch.zeros(1, 4, 8, 8), "BChw")
        assert store.find(key) is None
        with pytest.raises(ArtifactNotFoundError, match="no artifact"):
            store.read(key)
    assert store.find(key) is not None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError, GeneratorExit])
def test_a_failing_body_leaves_nothing(store: ArtifactStore, key: str, error: type[BaseException]) -> None:
    with pytest.raises(error), store.writing(key, stage="decode", version=1) as writer:  # noqa: PT012
        writer.put("latents", torch.zeros(1, 4, 8, 8), "BChw")
        raise error
    assert store.find(key) is None
    assert not folders(store)


def test_a_wrong_description_fails_before_any_work(store: ArtifactStore, key: str) -> None:
    wrong: dict[str, Any]
    for wrong in (
        {"level": -1},
        {"params": {"a": (1, 2)}},
        {"params": {"a": {1}}},
        {"parents": {"latents": "no key"}},
    ):
        with pytest.raises(ValidationError), store.writing(key, stage="decode", version=1, **wrong):
            pytest.fail("the body must not run")
    assert not folders(store)


def test_the_first_of_two_writers_wins(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=1) as slow:
        slow.put("image", torch.zeros(1, 3, 8, 8), "BCHW")
        with store.writing(key, stage="decode", version=1) as fast:
            fast.put("image", torch.zeros(1, 3, 8, 8), "BCHW")
    assert slow.manifest == fast.manifest == store.find(key)
    assert folders(store) == {fast.manifest.data}


def test_a_damaged_winner_does_not_win(store: ArtifactStore, artifact: str) -> None:
    manifest = store.root / "manifests" / artifact[:2] / f"{artifact}.json"
    with store.writing(artifact, stage="decode", version=1) as writer:
        manifest.write_bytes(manifest.read_bytes()[:-9])
    assert store.find(artifact) == writer.manifest
    assert writer.manifest.data == writer.folder.name


@pytest.mark.parametrize(
    "lost", ["latents.zarr/c/0/0/0/1", "latents.zarr/zarr.json", "latents.zarr", "files/a.txt", "."]
)
def test_what_is_deleted_before_the_commit_is_not_promised(store: ArtifactStore, key: str, lost: str) -> None:
    """A missing chunk would read as zeros."""
    missing = pytest.raises(DamagedArtifactError, match="is missing")
    with missing, store.writing(key, stage="decode", version=1) as writer:
        writer.put("latents", torch.ones(1, 1, 8, 1025), "BCHW")
        writer.put_file("a.txt", b"a")
        path = writer.folder / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert store.find(key) is None
    assert not folders(store)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(store: ArtifactStore, key: str, name: Any) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        with pytest.raises(InvalidNameError, match="is named by"):
            writer.put(name, torch.zeros(1))
        with pytest.raises(InvalidNameError, match="is named by"):
            writer.put_file(name, b"")
    assert store.find(key) is not None
    assert writer.manifest.files == {}
    with pytest.raises(ArtifactNotFoundError, match="holds no file"):
        store.read_file(key, name)


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(store: ArtifactStore, key: Any) -> None:
    for call in (store.find, store.read, store.verify, store.lease, lambda key: store.move_to_trash(key, "")):
        with pytest.raises(InvalidNameError):
            call(key)
    with pytest.raises(InvalidNameError), store.writing(key, stage="decode", version=1):
        pytest.fail("the body must not run")
    assert not store.root.exists()


def test_a_name_is_put_once(store: ArtifactStore, key: str) -> None:
    with store.writing(key, stage="decode", version=1) as writer:
        writer.put("a", torch.zeros(1))
        writer.put_file("a", b"x")  # an array and a file may share a name
        with pytest.raises(InvalidNameError, match="before"):
            writer.put("a", torch.zeros(1))
        with pytest.raises(InvalidNameError, match="before"):
            writer.put_file("a", b"y")
    assert store.read_file(key, "a") == b"x"


def test_setting_aside_makes_room_for_another(store: ArtifactStore, artifact: str) -> None:
    store.move_to_trash(artifact, "its colours look wrong")
    assert store.find(artifact) is None
    assert store.list_keys() == []
    assert not folders(store)
    assert "colours" in next(store.root.glob("trash/*/reason.txt")).read_text()
    with pytest.raises(ArtifactNotFoundError):
        store.move_to_trash(artifact, "again")
    with store.writing(artifact, stage="decode", version=1):
        pass
    assert store.find(artifact) is not None


def test_a_slow_reader_does_not_move_what_was_made_again(store: ArtifactStore, artifact: str) -> None:
    old = store.find(artifact)
    assert old is not None
    with pytest.raises(DamagedArtifactError), store._guarded(artifact):  # noqa: PT012 - a reader, half way
        store.move_to_trash(artifact, "found by a faster reader")
        with store.writing(artifact, stage="decode", version=1):
            pass
        raise DamagedArtifactError("the old data folder is gone")
    assert store.find(artifact) is not None
    assert store.read(artifact) == {}


def test_a_manifest_under_another_key_is_damage(store: ArtifactStore, artifact: str) -> None:
    other = fingerprint("another")
    path = store.root / "manifests" / other[:2] / f"{other}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((store.root / "manifests" / artifact[:2] / f"{artifact}.json").read_bytes())
    assert "is the manifest of" in str(store.verify(other))
    path.write_bytes(seal({**unseal(path.read_bytes()), "key": other, "data": "0" * 32}))
    assert store.find(other) is not None
    with pytest.raises(DamagedArtifactError, match="is missing"):
        store.read(other)
    assert store.find(other) is None
    assert store.read(artifact)


def test_leftovers_of_a_crash_are_not_seen(store: ArtifactStore, artifact: str) -> None:
    (store.root / "data" / ("f" * 32)).mkdir()
    (store.root / "manifests" / artifact[:2] / f".{artifact}.json.0.partial").write_bytes(b"{")
    (store.root / "manifests" / artifact[:2] / "notes.json").write_bytes(b"{}")
    assert store.list_keys() == [artifact]


def test_threads_share_a_store(store: ArtifactStore) -> None:
    keys = [fingerprint(i // 2) for i in range(8)]

    def work(i: int) -> None:
        with store.writing(keys[i], stage="decode", version=1) as writer:
            writer.put("a", torch.full((4,), float(i // 2)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.list_keys() == sorted(set(keys))
    assert [store.read(key)["a"][0].item() for key in keys] == [i // 2 for i in range(8)]
    assert len(folders(store)) == 4


def test_errors_read_well_and_travel(store: ArtifactStore, key: str) -> None:
    with pytest.raises(KeyError) as caught:
        store.read(key)
    assert str(caught.value) == f"no artifact {key} in {store.root}."
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_root_may_be_a_string_and_is_made_when_needed(tmp_path: Path, key: str) -> None:
    from storage import ArtifactStore

    store = ArtifactStore(str(tmp_path / "a" / "b"))
    assert store.list_keys() == []
    with store.writing(key, stage="decode", version=1):
        pass
    assert store.list_keys() == [key]
