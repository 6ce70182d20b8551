from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from storage import InvalidNameError, LeaseTimeoutError, StoreAccessError, device_lock
from storage.locks import file_lock

if TYPE_CHECKING:
    from pathlib import Path


def test_a_lock_is_free_again_after_its_body(tmp_path: Path) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "locks" / "a.lock", timeout=0):
            pass
    with pytest.raises(RuntimeError), file_lock(tmp_path / "locks" / "a.lock", timeout=0):
        raise RuntimeError
    with file_lock(tmp_path / "locks" / "a.lock", timeout=0):
        pass


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(3):
            with file_lock(tmp_path / "a.lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_waiter_hears_how_long_and_may_give_up(tmp_path: Path) -> None:
    waited: list[float] = []

    def give_up(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    with file_lock(tmp_path / "a.lock"):
        with pytest.raises(KeyboardInterrupt), file_lock(tmp_path / "a.lock", on_wait=give_up):
            pytest.fail("the body must not run")
        with (
            pytest.raises(LeaseTimeoutError, match=r"a\.lock is still locked by another process after 0\.0 s"),
            file_lock(tmp_path / "a.lock", timeout=0),
        ):
            pytest.fail("the body must not run")
    assert waited == sorted(waited)
    assert waited[2] >= 0.1


def test_a_swept_lock_file_locks_nobody_out_and_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path):
        path.unlink()
        with file_lock(path, timeout=0):  # a new file under the old name
            assert path.exists()
            with pytest.raises(LeaseTimeoutError), file_lock(path, timeout=0):
                pytest.fail("the body must not run")


def test_a_lock_nobody_may_have_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(IsADirectoryError), file_lock(tmp_path / "a.lock"):
        pytest.fail("the body must not run")

    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied", "/a.lock")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.locks.os.open", refuse)
        refused = pytest.raises(StoreAccessError, match=r"cannot read or write /a\.lock: Permission denied")
        with refused, file_lock(tmp_path / "b.lock"):
            pytest.fail("the body must not run")


@pytest.mark.parametrize("device", ["", "..", "../cuda", "a/b", "cuda 0", "cuda:0\n", ":0", "x" * 121])
def test_hostile_device_names_are_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(InvalidNameError, match="a device is named by"), device_lock(tmp_path, device):
        pytest.fail("the body must not run")


def test_one_render_a_device(tmp_path: Path) -> None:
    gpu = "GPU-4f2a1c9e-0000-1111-2222-333344445555"
    with device_lock(tmp_path, "cuda:0"), device_lock(tmp_path, "cpu"), device_lock(tmp_path, gpu):
        assert {path.name for path in (tmp_path / "locks").iterdir()} == {
            "device-cuda-0.lock",
            "device-cpu.lock",
            f"device-{gpu}.lock",
        }
        with pytest.raises(LeaseTimeoutError), device_lock(tmp_path, "cuda:0", timeout=0):
            pytest.fail("the body must not run")
