"""Real processes on one store: killed at any instant, racing for one key, waiting for each other."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
import torch

from storage import ArtifactStore, Checkpoints, LeaseTimeoutError, device_lock, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Processes

KILLS = 12


def lines(path: Path) -> list[str]:
    """What other processes have reported so far."""
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path, count: int, seconds: float = 30.0) -> list[str]:
    """Return the reports in `path` once there are `count`."""
    deadline = time.monotonic() + seconds
    while len(found := lines(path)) < count:
        assert time.monotonic() < deadline, f"{path} has only {found}"
        time.sleep(0.002)
    return found


@pytest.mark.thorough
def test_killed_in_mid_commit_nothing_is_torn_or_lost(
    store: ArtifactStore, tmp_path: Path, processes: Processes
) -> None:
    """What was acknowledged is there, whole; what is there is whole; the rest does not exist."""
    acks, draw = tmp_path / "acks", random.Random(0)
    for kill in range(KILLS):
        process = processes.start("commit_loop", store.root, acks, 1000 * kill)
        wait_for(acks, len(lines(acks)) + 1)
        time.sleep(draw.uniform(0, 0.05))
        processes.kill(process)
    acknowledged = [int(line) for line in lines(acks)]
    assert {fingerprint(i) for i in acknowledged} <= set(store.list_keys())
    for key in store.list_keys():
        manifest = store.find(key)
        assert manifest is not None
        i = manifest.params["i"]
        assert torch.equal(store.read(key)["latents"], torch.full((1, 4, 32, 32), float(i)))  # type: ignore[arg-type]
        assert store.read_file(key, "note.txt") == str(i).encode()
    assert len(store.list_keys()) - len(acknowledged) <= KILLS  # committed, but killed before the word was out
    assert not (store.root / "trash").exists()


def test_killed_in_mid_checkpoint_the_old_or_the_new_is_there(
    store: ArtifactStore, key: str, tmp_path: Path, processes: Processes
) -> None:
    acks, draw = tmp_path / "acks", random.Random(1)
    for _ in range(KILLS):
        process = processes.start("checkpoint_loop", store.root, acks, key)
        wait_for(acks, len(lines(acks)) + 1)
        time.sleep(draw.uniform(0, 0.05))
        processes.kill(process)
        newest = Checkpoints(store, key).newest()
        assert newest is not None
        assert newest.meta["save"] - int(lines(acks)[-1]) in (0, 1)
        assert newest.step == newest.meta["save"] // 2
        assert torch.equal(newest.tensors["latents"], torch.full((1, 4, 16, 16), float(newest.meta["save"])))
    assert not (store.root / "trash").exists()


def test_of_two_workers_one_computes_and_the_other_waits(
    store: ArtifactStore, key: str, tmp_path: Path, processes: Processes
) -> None:
    report = tmp_path / "report"
    first = processes.start("render", store.root, report, key)
    wait_for(report, 1)
    others = [processes.start("render", store.root, report, key) for _ in range(2)]
    assert [processes.wait(process) for process in (first, *others)] == [0, 0, 0]
    assert lines(report) == ["computing", "committed", "waited and found", "waited and found"]
    assert len(list(store.root.glob("data/*"))) == 1


def test_the_lease_of_a_killed_worker_passes_on(
    store: ArtifactStore, key: str, tmp_path: Path, processes: Processes
) -> None:
    report = tmp_path / "report"
    doomed = processes.start("render", store.root, report, key)
    wait_for(report, 1)
    successor = processes.start("render", store.root, report, key)
    processes.kill(doomed)
    assert processes.wait(successor) == 0
    assert lines(report) == ["computing", "computing", "committed"]
    assert set(store.read(key)) == {"image"}


def test_the_lease_of_a_stopped_worker_passes_on_and_it_does_no_harm_when_it_wakes(
    store: ArtifactStore, key: str, tmp_path: Path, processes: Processes
) -> None:
    report, heartbeat = tmp_path / "report", 0.5
    zombie = processes.start("render", store.root, report, key, heartbeat)
    wait_for(report, 1)
    os.kill(zombie, signal.SIGSTOP)
    successor = processes.start("render", store.root, report, key, heartbeat)
    assert processes.wait(successor) == 0
    assert lines(report) == ["computing", "computing", "committed"]
    manifest = store.find(key)
    os.kill(zombie, signal.SIGCONT)
    assert processes.wait(zombie) == 0
    assert lines(report)[3:] == ["committed"]
    assert store.find(key) == manifest
    assert len(list(store.root.glob("data/*"))) == 1
    assert torch.equal(store.read(key)["image"], torch.ones(1, 3, 8, 8))


def test_of_many_that_race_without_a_lease_one_wins(
    store: ArtifactStore, key: str, tmp_path: Path, processes: Processes
) -> None:
    for round_ in range(3):
        report, key = tmp_path / f"report{round_}", fingerprint("race", round_)
        start = time.time() + 0.3
        racers = [processes.start("race", store.root, report, key, start) for _ in range(4)]
        assert [processes.wait(racer) for racer in racers] == [0] * 4
        manifest = store.find(key)
        assert manifest is not None
        folders = [line.split() for line in lines(report)]
        assert {winner for _, winner in folders} == {manifest.data}
        assert [own for own, winner in folders if own == winner] == [manifest.data]
        assert torch.equal(store.read(key)["image"], torch.ones(1, 3, 8, 8))
    assert len(list(store.root.glob("data/*"))) == 3  # the losers deleted their copies


def test_locks_end_with_their_process(store: ArtifactStore, key: str, tmp_path: Path, processes: Processes) -> None:
    report = tmp_path / "report"
    holder = processes.start("hold", store.root, report, key)
    wait_for(report, 1)
    with pytest.raises(LeaseTimeoutError, match=f"{key}.lock is still locked"), store.lease(key, timeout=0.1):
        pytest.fail("the body must not run")
    with pytest.raises(LeaseTimeoutError), device_lock(store.root, "cuda:0", timeout=0):
        pytest.fail("the body must not run")
    with device_lock(store.root, "cuda:1", timeout=0), store.lease(fingerprint("another"), timeout=0):
        processes.kill(holder)
    with store.lease(key, timeout=1), device_lock(store.root, "cuda:0", timeout=1):
        pass
