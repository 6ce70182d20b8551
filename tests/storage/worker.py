"""The other processes of these tests: started once, it forks a child for each job and tells its process id.

One JSON object a line comes in, `{"job": name, "args": [...]}` or `{"wait": pid}`, and one number goes out:
the id of the child, or its exit status. Children are forked before Zarr's own thread exists, so that a test
can kill dozens of them without paying for the imports again. They report by appending lines to files.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import zarr  # noqa: F401  # else every child would import it at its first commit

from storage import ArtifactStore, Checkpoints, device_lock, fingerprint, locks
from storage.bucket import Bucket


def say(file: str, line: str) -> None:
    """Append a line in one write, which a killed process cannot take back or leave half done."""
    with open(file, "ab", buffering=0) as out:
        out.write(f"{line}\n".encode())


def opened(where: str) -> ArtifactStore:
    """A folder, or `URL FOLDER`: a bucket with its copies."""
    url, _, folder = where.rpartition(" ")
    return ArtifactStore(Bucket(url, Path(folder)) if url else where)


def commit_loop(root: str, acks: str, offset: int) -> None:
    store = opened(root)
    for i in itertools.count(offset):
        with store.writing(fingerprint(i), stage="loop", version=1, params={"i": i}) as artifact:
            artifact.put("latents", torch.full((1, 4, 32, 32), float(i)), "BChw")
            artifact.put_file("note.txt", str(i).encode())
        say(acks, str(i))


def checkpoint_loop(root: str, acks: str, key: str) -> None:
    """Save every step twice, so that a record is replaced as often as it is made."""
    checkpoints = Checkpoints(opened(root), key)
    newest = checkpoints.newest()
    first = newest.meta["save"] + 1 if newest else 0
    for i in itertools.count(first):
        checkpoints.save(i // 2, {"latents": torch.full((1, 4, 16, 16), float(i))}, {"save": i})
        say(acks, str(i))


def render(root: str, report: str, key: str, heartbeat: float = 10.0) -> None:
    """What a stage runner does: take the lease, look again, else work and commit."""
    locks.HEARTBEAT_SECONDS = heartbeat
    store = opened(root)
    waits: list[float] = []
    with store.lease(key, on_wait=waits.append):
        if store.find(key) is None:
            say(report, "computing")
            time.sleep(0.5)
            with store.writing(key, stage="render", version=1) as artifact:
                artifact.put("image", torch.ones(1, 3, 8, 8), "BCHW")
            say(report, "committed")
        else:
            say(report, "waited and found" if waits else "found")


def race(root: str, report: str, key: str, start: float) -> None:
    """Commit `key` without a lease, at the same instant as the others."""
    with opened(root).writing(key, stage="race", version=1) as artifact:
        artifact.put("image", torch.ones(1, 3, 8, 8), "BCHW")
        time.sleep(max(0.0, start - time.time()))
    say(report, f"{artifact.folder.name} {artifact.manifest.data}")


def hold(root: str, report: str, key: str) -> None:
    with opened(root).lease(key), device_lock(opened(root).root, "cuda:0"):
        say(report, "holding")
        time.sleep(60)


JOBS = {job.__name__: job for job in (commit_loop, checkpoint_loop, render, race, hold)}


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitpid(order["wait"], 0)[1]
        elif (answer := os.fork()) == 0:
            try:
                JOBS[order["job"]](*order["args"])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
