from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from storage import InvalidNameError, LeaseTimeoutError, StoreAccessError, device_lock, locks
from storage.locks import file_lock, lease

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


def test_a_silent_holder_loses_its_lease_and_frees_nothing_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain lock does not beat, like a process that is stopped."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    path, waited = tmp_path / "a.lock", [0.0]
    with ExitStack() as silent:
        silent.enter_context(file_lock(path))
        with lease(path, on_wait=waited.append):
            silent.close()
            monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 60.0)
            with pytest.raises(LeaseTimeoutError), lease(path, timeout=0):
                pytest.fail("the body must not run")
    assert waited[-1] >= 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["a.lock"]


def test_a_holder_that_beats_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / "a.lock"

    def touch(seconds: float) -> None:
        os.utime(path)
        if seconds > 0.5:
            raise KeyboardInterrupt

    with file_lock(path), pytest.raises(KeyboardInterrupt), lease(path, on_wait=touch):
        pytest.fail("the body must not run")


def test_a_lease_beats_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    path, beats = tmp_path / "a.lock", set[int]()
    with lease(path):
        while len(beats) < 4:
            beats.add(path.stat().st_mtime_ns)
            time.sleep(0.005)
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_of_many_heirs_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.3)
    path, inside, most = tmp_path / "a.lock", [0], [0]

    def work() -> None:
        with lease(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    successors = [threading.Thread(target=work) for _ in range(6)]
    with file_lock(path):
        for successor in successors:
            successor.start()
        for successor in successors:
            successor.join()
    assert most == [1]


def test_short_looks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night looks at a run again and again, and never waits."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    path = tmp_path / "a.lock"
    with file_lock(path):
        with pytest.raises(LeaseTimeoutError), lease(path, timeout=0):
            pytest.fail("the body must not run")
        time.sleep(0.11)
        with lease(path, timeout=0):
            pass


def test_what_was_heard_of_an_earlier_holder_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 60.0)
    path = tmp_path / "a.lock"
    with file_lock(path), pytest.raises(LeaseTimeoutError), lease(path, timeout=0):
        pytest.fail("the body must not run")
    heard = dict(locks._heard)
    assert heard
    with lease(path):
        locks._heard.update(heard)  # as in a process that has not looked since
        monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 1e-6)
        first_look = pytest.raises(LeaseTimeoutError)
        with first_look, lease(path, timeout=0):
            pytest.fail("the body must not run")


def test_a_device_is_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process still holds its memory."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.0)
    with (
        device_lock(tmp_path, "cuda:0"),
        pytest.raises(LeaseTimeoutError),
        device_lock(tmp_path, "cuda:0", timeout=0.2),
    ):
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
