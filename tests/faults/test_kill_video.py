"""A video's render in a process of its own, killed in the middle of a stage, ends with the bytes of one left alone."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.spec import RunOptions, make_spec
from storage import ArtifactStore
from tests.processes import freescale
from tests.toys import video_folder

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from flows.rendering.session import Result

WORDS = ["a blue square", "--size", "160x128", "--fps", "12", "--restart", "0.3", "--dilation", "0,0.7"]


def start(home: Path, model: Path) -> ForkServerProcess:
    words = ["render", *WORDS, "--model", str(model), "--threads", "1", "--checkpoint-every", "0", "--json"]
    return freescale(home / "told", *words, "--home", str(home), "--out", str(home / "clip.mp4"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_folder(tmp_path_factory.mktemp("models"), "modelscope", layers=1)


@pytest.fixture(scope="module")
def quiet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Result, bytes]:
    """The same render, left alone."""
    folder = tmp_path_factory.mktemp("quiet")
    session = Session(Home(folder / "home"), RunOptions(threads=1), Terminal(quiet=True))
    method = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}
    spec = {"prompt": WORDS[0], "width": 160, "height": 128, "fps": 12, "method": method, "model": {"name": str(model)}}
    result = session.render(prepare(make_spec(spec), session.home), folder / "clip.mp4")
    return session.home, result, (folder / "clip.mp4").read_bytes()


def killed_and_resumed(home: Path, model: Path, moment: str) -> list[dict[str, Any]]:
    """Kill a render as soon as there is a file like `moment`, and have it go on; its stages."""
    home.mkdir()
    process = start(home, model)
    while not list(home.glob(moment)) and process.exitcode is None:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (home / "told.err").read_text()
    process = start(home, model)
    process.join(300)
    assert process.exitcode == 0, (home / "told.err").read_text()
    result = json.loads((home / "told.out").read_text().splitlines()[-1])
    stages: list[dict[str, Any]] = result["stages"]
    return [stage | {"pixels_sha256": result["pixels_sha256"]} for stage in stages]


# a step of a stage that leaves checkpoints; a frame of a video that is being decoded
@pytest.mark.thorough
@pytest.mark.parametrize("moment", ["steps/*/step-000002.json", "steps/*/*/pieces/image-000001.json"])
def test_killed_inside_a_stage_ends_with_the_same_bytes(
    moment: str, model: Path, quiet: tuple[Home, Result, bytes], tmp_path: Path
) -> None:
    place, alone, video = quiet
    for attempt in range(5):  # on a busy machine the stage may be over before the kill comes
        home = tmp_path / str(attempt)
        stages = killed_and_resumed(home, model, f"store/{moment}")
        if resumed := [stage for stage in stages if stage["resumed_at_step"]]:
            break
    assert resumed
    assert ("decode" in [stage["name"] for stage in resumed]) == ("pieces" in moment)
    assert stages[0]["pixels_sha256"] == alone.pixels_sha256
    assert (home / "clip.mp4").read_bytes() == video
    store = ArtifactStore(home / "store")
    for outcome in alone.outcomes:
        made = store.read(outcome.key)
        assert all(torch.equal(made[name], t) for name, t in place.store.read(outcome.key).items())
    assert not list(home.glob("store/steps/*"))
