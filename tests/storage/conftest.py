from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from storage import ArtifactStore, Checkpoints, Unfinished, fingerprint
from tests.bucket_server import bucket_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from storage import Writer

REPOSITORY = Path(__file__).parents[2]
KEY = fingerprint("the artifact under test")


class Processes:
    """Other processes working on the same store, by way of `worker.py`."""

    def __init__(self) -> None:
        self._worker = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def start(self, job: str, *args: Any) -> int:
        """Begin a job of `worker.py` in a process of its own and return its id."""
        return self._ask({"job": job, "args": [str(arg) if isinstance(arg, Path) else arg for arg in args]})

    def wait(self, process: int) -> int:
        """Return the exit code of a process, once it has ended; that of a signal is negative."""
        return os.waitstatus_to_exitcode(self._ask({"wait": process}))

    def kill(self, process: int) -> None:
        """End a process as a power cut would: `kill -9`."""
        os.kill(process, signal.SIGKILL)
        assert self.wait(process) == -signal.SIGKILL

    def close(self) -> None:
        self._worker.communicate()

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._worker.stdin
        assert self._worker.stdout
        self._worker.stdin.write(json.dumps(order) + "\n")
        self._worker.stdin.flush()
        return int(self._worker.stdout.readline())


def put_video(
    store: ArtifactStore, writer: Writer, name: str, shape: Sequence[int], dtype: torch.dtype, frames: Iterable[Tensor]
) -> None:
    """Add a video to an artifact frame by frame; what lies in `steps/` is for the caller to clear after the commit."""
    pieces = Unfinished(Checkpoints(store, writer.manifest.key)).array(name, shape, dtype)
    for index, frame in enumerate(frames):
        pieces.put(index, frame)
    writer.put_pieces(name, pieces)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server of buckets; the environment says it to this process and to those of `processes`."""
    with bucket_server() as url:
        yield url


@pytest.fixture(scope="session")
def processes(server: str) -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def artifact(store: ArtifactStore) -> str:
    """The key of a committed artifact with arrays of each kind and a file."""
    generator = torch.Generator().manual_seed(0)
    with store.writing(KEY, stage="decode", version=1, level=1, params={"prompt": "ein Kreis, grün"}) as writer:
        writer.put("latents", torch.randn((1, 4, 8, 8), generator=generator), "BChw")
        writer.put("video", torch.randn((1, 3, 2, 8, 8), generator=generator).to(torch.bfloat16), "BCFHW")
        writer.put_file("note.txt", b"a yellow ring on a night sky")
    return KEY
