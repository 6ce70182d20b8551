"""`freescale evaluate` over I3D and RAFT on videos of a toy model: random weights of the real names and shapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.terminal import Terminal
from flows.evaluate.layout import REFERENCE, Evaluation, prepare_evaluation
from flows.evaluate.readings import Readings, cells, read_all
from flows.evaluate.report import as_json, as_markdown
from flows.home import Home
from flows.rendering.session import Session
from flows.rendering.stop import StopEvent
from stages.errors import SpecError
from stages.metrics.convert import convert
from stages.metrics.extractors import find_weights, metrics_folder
from stages.metrics.i3d import I3D
from stages.metrics.raft import Raft
from stages.metrics.spec import make_evaluation
from stages.metrics.video_extractors import load_flow, load_video_network
from stages.metrics.video_readings import levels
from stages.metrics.videos import dynamics
from stages.runner import Interrupted
from stages.spec import RunOptions
from tests.toys import VIDEO_SIZE, random_weights, video_folder

if TYPE_CHECKING:
    from flows.evaluate.layout import Picture
    from flows.evaluate.readings import Read

CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model": {"name": "shapes-motion"},
    "methods": ["direct"],
    "sizes": ["80x64"],
    "prompts": ["a red square moving left over sand", "a blue disc growing on a meadow"],
    "frames": 16,
    "fps": 30,  # four frames of 16 are looked at
    "steps": 1,
    "draws": 10,
    "extractor": "i3d",
    "metrics": ["fvd", "kvd", "dynamic_degree"],
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `whole` is of."""
    folder = video_folder(tmp_path_factory.mktemp("models"), "videocrafter2")
    card = json.loads((folder / "freescale.json").read_text())
    (folder / "freescale.json").write_text(json.dumps(card | {"native": list(VIDEO_SIZE), "frames": 16}))
    return VALUES | {"model": {"name": str(folder)}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose weights came the way a person's come."""
    root, given = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("published")
    for seed, (name, net) in enumerate((("i3d", I3D()), ("raft", Raft()))):
        torch.save(random_weights(net, seed), given / name)
        convert(name, given / name, metrics_folder(root))
    return root


def session(home: Path, stop: StopEvent | None = None) -> Session:
    options, quiet = RunOptions(threads=1), Terminal(quiet=True)
    return Session(Home(home), options, quiet, stop) if stop else Session(Home(home), options, quiet)


@pytest.fixture(scope="module")
def whole(home: Path, values: dict[str, Any]) -> tuple[Evaluation, Readings]:
    """Stopped after the first video and typed again."""
    evaluation, stop = prepare_evaluation(make_evaluation(values), Home(home)), StopEvent()

    def stop_at_once(done: int, picture: Picture) -> None:
        stop.set()

    with pytest.raises(Interrupted):
        read_all(evaluation, session(home, stop), told=stop_at_once)
    return evaluation, read_all(evaluation, session(home))


def frames_of(read: Read, home: Path) -> list[torch.Tensor]:
    assert read.picture.job is not None
    key = read.picture.job.plan.exports[-1].parents["image"].key
    return [levels(frame) for frame in Home(home).store.open_frames(key)["image"]]


@pytest.mark.thorough
def test_the_numbers_are_there_and_say_how_they_were_taken(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, readings = whole
    found = list(cells(evaluation, readings))
    record = json.loads(json.dumps(as_json(evaluation, found, readings)))
    by = {row["metric"]: row for row in record["rows"]}
    assert list(by) == ["fvd", "kvd", "dynamic_degree"]
    for row in by.values():
        assert all(math.isfinite(row[name]) for name in ("value", "low", "high"))
        assert row["n"] == 2
    for metric in ("fvd", "kvd"):
        assert (by[metric]["network"], by[metric]["resize"], by[metric]["fps"]) == ("i3d", "bilinear", None)
        assert (by[metric]["n_reference"], by[metric]["protocol"]) == (2, "base")
    assert by["fvd"]["value"] > 0
    degree = by["dynamic_degree"]
    assert (degree["network"], degree["resize"], degree["fps"]) == ("raft", "none", "30")
    assert 0 <= degree["low"] <= degree["value"] <= degree["high"] <= 1
    assert degree["weights_sha256"] == find_weights("raft", Path(), evaluation.weights[1].path).sha256
    assert [len(picture["pair_scores"]) for picture in record["pictures"]] == [3, 3]
    page = as_markdown(evaluation, found)
    assert page.startswith("| method | size | n | FVD | KVD | dynamic degree |")
    assert f"Network: i3d ({evaluation.weights[0].sha256[:8]}), resize bilinear." in page
    assert "videos at 30 frames a second" in page


@pytest.mark.thorough
def test_the_numbers_are_those_of_the_stored_frames(whole: tuple[Evaluation, Readings], home: Path) -> None:
    evaluation, readings = whole
    network, flow = load_video_network(evaluation.weights[0], CPU, "bilinear"), load_flow(evaluation.weights[1], CPU)
    one = next(read for read in readings.read if read.picture.group != REFERENCE)
    frames = frames_of(one, home)
    assert len(frames) == 16
    assert torch.equal(one.tensors["features"], network.extract(frames))
    expected = dynamics(frames, 30, flow)
    assert one.tensors["pair_scores"].tolist() == list(expected.scores)
    assert bool(one.tensors["dynamic_degree"]) is expected.is_dynamic
    assert "pair_scores" not in next(read for read in readings.read if read.picture.group == REFERENCE).tensors


@pytest.mark.thorough
def test_the_command_takes_them_from_the_store_and_reads_anew_for_another_resize(
    whole: tuple[Evaluation, Readings],
    values: dict[str, Any],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Session, "render", lambda *_: pytest.fail("rendered again"))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(values))
    command = ["evaluate", str(spec), "--home", str(home), "--json"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert [row["value"] for row in rows] == [score.value for cell in cells(*whole) for score in cell.scores]
    other = CliRunner().invoke(app, [*command, "--resize", "antialias", "--plan"])
    assert other.exit_code == 0, other.output
    told = json.loads(other.output.splitlines()[-1])
    assert (told["pictures"], told["to_read"]) == (4, 4)
    assert told["evaluation"] != whole[0].name


def test_i3d_wants_sixteen_frames(home: Path) -> None:
    with pytest.raises(SpecError, match="frames: I3D reads 16 frames, and there are 8; ask for more"):
        prepare_evaluation(make_evaluation(VALUES | {"frames": None, "metrics": ["fvd"]}), Home(home))


def test_another_checksum_is_refused(home: Path) -> None:
    for name in ("i3d", "raft"):
        with pytest.raises(SpecError, match=rf"weights\.{name}\.sha256: .* has [0-9a-f]{{64}}, not 0000"):
            prepare_evaluation(make_evaluation(VALUES | {"weights": {name: {"sha256": "0" * 64}}}), Home(home))
