"""Real processes and real signals: a render killed at any instant ends with the same bytes as one left alone.

`FREESCALE_KILLS=30 pytest tests/faults` is the long version.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from storage import ArtifactStore

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("FREESCALE_KILLS", "6"))
RENDER = [
    "render",
    "a green ring on sand",
    "--size",
    "192x128",
    "--steps",
    "16",
    "--restart",
    "0.3",
    "--dilation",
    "0,0.7",
]
RENDER += ["--threads", "1"]


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, with a checkpoint after every step."""
    command = [sys.executable, "-m", "flows.cli", *words, "--checkpoint-every", "0", "--home", str(home), "--json"]
    return subprocess.Popen(
        [*command, "--out", str(home / "out.png")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def arrays(home: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Every array of every stage, by stage fingerprint and name."""
    store = ArtifactStore(home / "store")
    return {
        f"{stage['fingerprint']}/{name}": tensor
        for stage in result["stages"]
        for name, tensor in store.read(stage["fingerprint"]).items()
    }


def progress(home: Path) -> int:
    """How much has been written: manifests and step records."""
    store = home / "store"
    return len(list(store.glob("manifests/*/*.json"))) * 100 + len(list(store.glob("steps/*/*.json")))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same render, never interrupted."""
    home = tmp_path_factory.mktemp("quiet")
    result = finish(start(home, *RENDER))
    return result | {"png": (home / "out.png").read_bytes(), "arrays": arrays(home, result)}


def test_killed_anywhere_ends_with_the_same_bytes(quiet: dict[str, Any], tmp_path: Path) -> None:
    killed, resumed, round_ = 0, 0, 0
    while killed < KILLS:
        home = tmp_path / f"home{round_}"
        home.mkdir()
        round_ += 1
        for attempt in range(KILLS):
            before, process = progress(home), start(home, *RENDER)
            # each time a little further on: within stages (checkpoints appear) and between them (manifests do)
            while progress(home) < before + 1 + 37 * ((killed + attempt) % 5) and process.poll() is None:
                time.sleep(0.005)
            if process.poll() is not None or killed == KILLS:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
        else:
            process = start(home, *RENDER)
        if process.poll() is None and killed < KILLS:
            process.kill()
        process.communicate()
        result = finish(start(home, *RENDER))
        resumed += sum(stage["resumed_at_step"] is not None for stage in result["stages"])
        assert result["pixels_sha256"] == quiet["pixels_sha256"]
        made = arrays(home, quiet)
        assert all(torch.equal(made[key], tensor) for key, tensor in quiet["arrays"].items())
        assert (home / "out.png").read_bytes() == quiet["png"]
    assert killed >= KILLS


def test_resumed_run_says_from_which_step(quiet: dict[str, Any], tmp_path: Path) -> None:
    process = start(tmp_path, *RENDER)
    while not list(tmp_path.glob("store/steps/*/step-000004.json")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    again = start(tmp_path, *RENDER)
    out, err = again.communicate(timeout=300)
    steps = [s["resumed_at_step"] for s in json.loads(out.splitlines()[-1])["stages"] if s["resumed_at_step"]]
    assert steps, err
    assert f"going on from step {steps[0]}" in err
    assert (tmp_path / "out.png").read_bytes() == quiet["png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_checkpoint_and_the_command_to_go_on(
    quiet: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, *RENDER)
    while not list(tmp_path.glob("store/steps/*/step-*.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    run = err.split("freescale resume ")[1].split()[0]
    result = finish(start(tmp_path, "resume", run, "--threads", "1"))
    assert result["pixels_sha256"] == quiet["pixels_sha256"]
