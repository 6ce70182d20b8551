"""Real processes and real signals: a render killed at any instant ends with the same bytes as one left alone.

`FREESCALE_KILLS=200 pytest -s tests/faults/test_kill_resume.py` is the long version; it prints where the kills fell.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from flows.home import Home
from stages.models.folder import EMBEDDED
from storage import ArtifactStore
from tests.adapter_files import SHAPES_UNET, lora_file, low_rank
from tests.checkpoints import shapes_original
from tests.processes import freescale

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

KILLS = int(os.environ.get("FREESCALE_KILLS", "3"))
RENDER = [
    "render",
    "a green ring on sand",
    "--size",
    "160x128",
    "--steps",
    "7",
    "--restart",
    "0.3",
    "--dilation",
    "0,0.7",
]
RENDER += ["--threads", "1"]


def finish(process: ForkServerProcess, told: Path) -> tuple[dict[str, Any], str]:
    """The result of a process that `freescale` began, and what it said on the way."""
    process.join(300)
    out, err = (told.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
    assert process.exitcode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result, err


def arrays(home: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Every array of every stage, by stage fingerprint and name."""
    store = ArtifactStore(home / "store")
    return {
        f"{stage['fingerprint']}/{name}": tensor
        for stage in result["stages"]
        for name, tensor in store.read(stage["fingerprint"]).items()
    }


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same render, never interrupted."""
    home = tmp_path_factory.mktemp("quiet")
    result, _ = finish(begin(home), home / "told")
    return result | {"png": (home / "out.png").read_bytes(), "arrays": arrays(home, result)}


def begin(home: Path, *words: str) -> ForkServerProcess:
    """The command line in a process of its own, by default that render, with a checkpoint after every step."""
    words = (*(words or RENDER), "--checkpoint-every", "0", "--home", str(home), "--json")
    return freescale(home / "told", *words, "--out", str(home / "out.png"))


def work(home: Path) -> int:
    """How often something was written: every manifest, and every step that was checkpointed."""
    steps = [int(path.stem.split("-")[-1]) for path in home.glob("store/steps/*/step-*.json")]
    return 100 * len(list(home.glob("store/manifests/*/*.json"))) + max(steps, default=0)


def in_hand(home: Path) -> str:
    """The stage that a killed render was at: the first of its plan that is not there."""
    records = list(home.glob("store/runs/*/run.json"))
    if not records:
        return "before the first"
    place = Home(home)
    plan = place.runs.load(records[0].parent.name).plan
    return next((f"{call.stage} {call.level}" for call in plan if place.store.find(call.key) is None), "after the last")


@pytest.mark.thorough
def test_killed_anywhere_ends_with_the_same_bytes(quiet: dict[str, Any], tmp_path: Path) -> None:
    draw = random.Random(int(os.environ.get("FREESCALE_SEED", "0")))
    kills: Counter[str] = Counter()
    renders = resumed = 0
    began = time.monotonic()
    while kills.total() < KILLS:
        home = tmp_path / f"home{renders}"
        home.mkdir()
        renders += 1
        while True:  # one render: killed again and again until it ends, each process after some work or none
            process, before = begin(home), work(home)
            if kills.total() < KILLS:
                events = draw.choice((0, 1, 1, 3, 6))
                _wait(process, home, before, events, draw.uniform(0.0, 0.25 if events else 2.0))
                process.kill()
            process.join(300)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, (home / "told.err").read_text()
            kills[in_hand(home)] += 1
        result = json.loads((home / "told.out").read_text().splitlines()[-1])
        store = ArtifactStore(home / "store")
        resumed += sum(bool(made.resumed_at) for key in store.list_keys() if (made := store.peek(key)) is not None)
        assert result["pixels_sha256"] == quiet["pixels_sha256"]
        there = arrays(home, quiet)
        assert all(torch.equal(there[key], tensor) for key, tensor in quiet["arrays"].items())
        assert (home / "out.png").read_bytes() == quiet["png"]
        shutil.rmtree(home)
    seconds = time.monotonic() - began
    print(f"\n{kills.total()} kills of {renders} renders in {seconds:.0f} s, all ended with the same bytes;")
    print(f"{resumed} stages went on from a checkpoint; the stage in hand: {dict(sorted(kills.items()))}")
    if KILLS >= 100:
        assert {"conditioning 0", "base_denoise 0", "highres_denoise 1", "detail_pass 1"} <= kills.keys()


def _wait(process: ForkServerProcess, home: Path, before: int, events: int, seconds: float) -> None:
    """Until the process has written so often, and so much longer; or it ended."""
    while events and process.exitcode is None:
        if (now := work(home)) != before:
            before, events = now, events - 1
        time.sleep(0.002)
    process.join(seconds)


def test_resumed_run_says_from_which_step(quiet: dict[str, Any], tmp_path: Path) -> None:
    """On a busy machine the render may be done before the kill comes; then it is tried again in another home."""
    for attempt in range(5):
        home = tmp_path / str(attempt)
        home.mkdir()
        process = begin(home)
        while not list(home.glob("store/steps/*/step-*.json")) and process.exitcode is None:
            time.sleep(0.005)
        process.kill()
        process.join()
        result, err = finish(begin(home), home / "told")
        if steps := [stage["resumed_at_step"] for stage in result["stages"] if stage["resumed_at_step"]]:
            break
    assert steps, err
    assert f"going on from step {steps[0]}" in err
    assert (home / "out.png").read_bytes() == quiet["png"]


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_checkpoint_and_the_command_to_go_on(
    quiet: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    process = begin(tmp_path)
    while not list(tmp_path.glob("store/steps/*/step-*.json")) and process.exitcode is None:
        time.sleep(0.005)
    os.kill(process.pid or 0, number)
    process.join(60)
    err = (tmp_path / "told.err").read_text()
    assert process.exitcode == 3, err
    run = err.split("freescale resume ")[1].split()[0]
    result, _ = finish(begin(tmp_path, "resume", run, "--threads", "1"), tmp_path / "told")
    assert result["pixels_sha256"] == quiet["pixels_sha256"]


@pytest.mark.thorough
def test_a_killed_render_with_adapters_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """A LoRA from the prompt, one from the command line, an embedding, and a model that is told to predict v."""
    prompt = ("render", "a green (ring:1.2) glow <lora:unet:0.8>", "--prompt-syntax", "a1111", "--lora", "both:0.5:1")
    words = (*prompt, "--prediction", "v_prediction", *RENDER[2:])
    results = dict[str, dict[str, Any]]()
    for name in ("quiet", "killed"):
        home = tmp_path / name
        lora_file(home / "loras" / "both.safetensors")
        (home / "embeddings").mkdir()
        vectors = {name: torch.full((2, 48), 0.1) for name in ("clip_l", "clip_g")}
        save_file(vectors, home / "embeddings" / "glow.safetensors")
        lora_file(home / "loras" / "unet.safetensors", low_rank({SHAPES_UNET: (96, 96)}, seed=1))
        if name == "killed":
            process = begin(home, *words)
            while not list(home.glob("store/steps/*/step-*.json")) and process.exitcode is None:
                time.sleep(0.005)
            process.kill()
            process.join()
        results[name], _ = finish(begin(home, *words), home / "told")
    assert results["killed"]["pixels_sha256"] == results["quiet"]["pixels_sha256"]
    assert (tmp_path / "killed" / "out.png").read_bytes() == (tmp_path / "quiet" / "out.png").read_bytes()


@pytest.mark.thorough
def test_a_model_in_a_single_file_goes_on_with_the_bytes_of_its_folder(quiet: dict[str, Any], tmp_path: Path) -> None:
    """Killed after its first checkpoint inside a stage."""
    save_file(dict(shapes_original()), tmp_path / "shapes.safetensors")
    words = [*RENDER, "--model", str(tmp_path / "shapes.safetensors"), "--config", str(EMBEDDED)]
    process = begin(tmp_path, *words)
    while not list(tmp_path.glob("store/steps/*/step-*.json")) and process.exitcode is None:
        time.sleep(0.005)
    process.kill()
    process.join()
    result, _ = finish(begin(tmp_path, *words), tmp_path / "told")
    assert result["pixels_sha256"] == quiet["pixels_sha256"]
