"""A clip's render in a process of its own, killed in the middle of a stage, ends with the bytes of one left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flows.home import Home
from flows.progress import Terminal
from flows.session import Session, prepare
from stages.spec import RunOptions, make_spec
from storage import ArtifactStore
from tests.toys import video_folder

WORDS = ["a blue square", "--size", "160x128", "--fps", "12", "--restart", "0.3", "--dilation", "0,0.7"]
ROOT = Path(__file__).parents[2]


def start(home: Path, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", "render", *WORDS, "--model", str(model), "--threads", "1"]
    command += ["--checkpoint-every", "0", "--home", str(home), "--out", str(home / "clip.mp4"), "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def test_killed_inside_a_stage_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model, home = video_folder(tmp_path, "modelscope"), tmp_path / "home"
    process = start(home, model)
    while not list(home.glob("store/steps/*/step-000002.json")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    _, err = process.communicate()
    assert process.returncode < 0, err
    process = start(home, model)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert any(stage["resumed_at_step"] for stage in result["stages"]), err

    quiet = Session(Home(tmp_path / "quiet"), RunOptions(threads=1), Terminal(quiet=True))
    method = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}
    spec = {"prompt": WORDS[0], "width": 160, "height": 128, "fps": 12, "method": method, "model": {"name": str(model)}}
    alone = quiet.render(prepare(make_spec(spec), quiet.home), tmp_path / "quiet.mp4")
    assert alone.pixels_sha256 == result["pixels_sha256"]
    assert (tmp_path / "quiet.mp4").read_bytes() == (home / "clip.mp4").read_bytes()
    store = ArtifactStore(home / "store")
    for outcome in alone.outcomes:
        made = store.read(outcome.key)
        assert all(torch.equal(made[name], t) for name, t in quiet.home.store.read(outcome.key).items())
