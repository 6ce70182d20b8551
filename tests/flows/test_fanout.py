"""Workers of a real Dask cluster inside one render and one evaluation: the same bits as alone, deaths, a stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.cli.terminal import Terminal
from flows.cluster.connect import cluster
from flows.cluster.fanout import CallHelpers, fanout_over, open_fanout
from flows.cluster.pool import WorkerPool, open_pool
from flows.cluster.stored import Stored
from flows.evaluate.layout import prepare_evaluation
from flows.evaluate.readings import Readings, cells, read_all
from flows.evaluate.report import as_json
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Session
from flows.rendering.stop import StopEvent
from freescale.vae.tile import Tile
from stages.decode import DecodeVideo
from stages.errors import SpecError
from stages.metrics.spec import make_evaluation
from stages.planner.budget import SAVINGS
from stages.runner import Interrupted
from stages.spec import RunOptions, make_spec
from stages.upscale import UpscaleVideo
from tests.homes import session_in
from tests.processes import forked_workers
from tests.toys import video_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client

    from flows.evaluate.layout import Evaluation
    from flows.rendering.session import Result

OPTIONS = RunOptions(threads=1, checkpoint_every=0)
TILED = RunOptions(threads=1, vae_memory=5200 << 10, vae_tile=64)  # more than the VAE takes whole at 96x72 alone
SMALL: dict[str, Any] = {
    "prompt": "a green ring on sand",
    "width": 128,
    "height": 96,
    "cascade": [[96, 72], [128, 96]],
    "steps": 2,
}
CLIP: dict[str, Any] = {  # of the model in the folder that the fixture `clip` writes
    "prompt": "a blue square moving left over sand",
    "method": {"name": "freescale/rgb-upsampling"},  # enlarges frames too
    "width": 160,
    "height": 128,
    "frames": 4,
    "steps": 2,
}
MEASURED: dict[str, Any] = {
    "methods": ["direct"],
    "sizes": ["64x64"],
    "count": 3,
    "steps": 2,
    "metrics": ["is", "objects"],
    "draws": 10,
}

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours


def strike(folder: Path) -> None:
    """Let the files of a folder say when this worker dies: at so many tiles, at a frame, always at a picture of a seed.

    Or when it has no memory for a frame.
    """
    from freescale.vae.tile import TiledVae
    from stages.decode import DecodeVideo

    computing, decoding, rendering, count = TiledVae.compute, DecodeVideo.make_frame, Session.render, [0]

    def compute(self: TiledVae, *how: Any) -> Any:
        count[0] += 1
        (folder / f"computed-{os.getpid()}").touch()
        if (strike_file := folder / "tile").exists() and count[0] % 5 == 0:
            strike_file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return computing(self, *how)

    def make_frame(self: DecodeVideo, parents: Any, models: Any, options: RunOptions, index: int) -> Any:
        (folder / f"decoded-{os.getpid()}").touch()
        if (strike_file := folder / f"frame-{index}").exists():
            strike_file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / f"scarce-{index}").exists() and not options.offload:
            raise torch.OutOfMemoryError("no memory left")
        return decoding(self, parents, models, options, index)

    def render(self: Session, job: Any, *how: Any, **named: Any) -> Any:
        if (folder / f"seed-{job.spec.seed}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return rendering(self, job, *how, **named)

    TiledVae.compute, Session.render = compute, render  # type: ignore[method-assign]
    DecodeVideo.make_frame = make_frame  # type: ignore[method-assign]


def wait_or_pass(folder: Path, number: int) -> int:
    """The first task of many waits until three others were given out, and a while longer; a worker's."""
    (folder / f"begun-{number}").touch()
    while number == 0 and len(list(folder.glob("begun-*"))) < 4:
        time.sleep(0.01)
    time.sleep(0.5 if number == 0 else 0)
    return number


@pytest.fixture(scope="module")
def strikes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strikes")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, strikes: Path) -> Iterator[Client]:
    import cloudpickle
    from distributed import WorkerPlugin

    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Strikes(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            strike(strikes)

    with forked_workers(), cluster(Home(tmp_path_factory.mktemp("dask")), None, 2, deaths=1) as client:
        client.register_plugin(Strikes())
        yield client


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return rendered(Home(tmp_path_factory.mktemp("alone")), None)


def rendered(home: Home, client: Client | None, spec: dict[str, Any] = SMALL, options: RunOptions = TILED) -> Result:
    session = session_in(home.root, **options.model_dump(exclude_unset=True))
    with fanout_over(client and WorkerPool(client, session.stop), home, options) as session.helpers:
        return session.render(prepare(make_spec(spec), home))


@pytest.mark.thorough
def test_a_render_over_workers_has_the_same_pixels(
    tmp_path: Path, client: Client, strikes: Path, alone: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freescale.vae.tile import TiledVae

    monkeypatch.setattr(TiledVae, "compute", None)  # nothing is computed here
    made = rendered(Home(tmp_path), client)
    assert made.pixels_sha256 == alone.pixels_sha256
    assert len(list(strikes.glob("computed-*"))) == 2
    assert [o.call.stage.name for o in made.outcomes] == [o.call.stage.name for o in alone.outcomes]
    assert not any(outcome.reused for outcome in made.outcomes)
    assert len([path for path in made.outputs if path.is_file()]) == 2
    assert not list(tmp_path.glob("cache/tiles/*"))


@pytest.mark.thorough
def test_a_worker_killed_at_a_tile_changes_nothing(
    tmp_path: Path, client: Client, strikes: Path, alone: Result
) -> None:
    (strikes / "tile").touch()
    made = rendered(Home(tmp_path), client)
    assert not (strikes / "tile").exists()
    assert made.pixels_sha256 == alone.pixels_sha256
    assert not any(outcome.reused for outcome in made.outcomes)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return CLIP | {"model": {"name": str(video_folder(tmp_path_factory.mktemp("models"), "modelscope", layers=1))}}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, clip: dict[str, Any]) -> tuple[Home, Result]:
    home = Home(tmp_path_factory.mktemp("clip"))
    return home, rendered(home, None, clip, OPTIONS)


def assert_same_video(home: Home, made: Result, alone: tuple[Home, Result]) -> None:
    """Every array of every stage, and every file but the record of the run."""
    place, quiet = alone
    assert made.pixels_sha256 == quiet.pixels_sha256
    assert [o.key for o in made.outcomes] == [o.key for o in quiet.outcomes]
    assert not any(outcome.reused for outcome in made.outcomes)
    for outcome in quiet.outcomes:
        found = home.store.read(outcome.key)
        assert all(torch.equal(found[name], t) for name, t in place.store.read(outcome.key).items())
    assert [path.read_bytes() for path in made.outputs] == [path.read_bytes() for path in quiet.outputs]
    assert not list(home.root.glob("cache/tiles/*"))


@pytest.mark.thorough
def test_the_frames_of_a_video_over_workers_are_the_same(
    tmp_path: Path,
    client: Client,
    strikes: Path,
    clip: dict[str, Any],
    video: tuple[Home, Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DecodeVideo, "make_frame", None)  # nothing is computed here
    monkeypatch.setattr(UpscaleVideo, "make_frame", None)
    assert_same_video(Home(tmp_path), rendered(Home(tmp_path), client, clip, OPTIONS), video)
    assert len(list(strikes.glob("decoded-*"))) == 2


@pytest.mark.thorough
def test_the_tiles_of_a_videos_frames_over_workers_are_the_same(
    tmp_path: Path, client: Client, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from freescale.vae.tile import TiledVae

    homes, spec = (Home(tmp_path / "alone"), Home(tmp_path / "over")), clip | {"frames": 2}
    options = TILED.model_copy(update={"vae_memory": 2 << 20, "vae_tile": 128})  # enough for a frame of the first level
    quiet = rendered(homes[0], None, spec, options)
    monkeypatch.setattr(TiledVae, "compute", None)  # nothing is computed here
    helped, tiles = [], CallHelpers.tiles

    def noted(self: CallHelpers, frame: int = 0) -> Any:
        helped.append(f"{self.task.call.label}, frame {frame}")
        return tiles(self, frame)

    monkeypatch.setattr(CallHelpers, "tiles", noted)
    assert_same_video(homes[1], rendered(homes[1], client, spec, options), (homes[0], quiet))
    assert helped == [f"{label}, frame {index}" for label in ("upscale 1", "decode 1") for index in range(2)]


@pytest.mark.thorough
def test_a_worker_killed_at_a_frame_changes_nothing(
    tmp_path: Path, client: Client, strikes: Path, clip: dict[str, Any], video: tuple[Home, Result]
) -> None:
    (strikes / "frame-2").touch()
    made = rendered(Home(tmp_path), client, clip, OPTIONS)
    assert not (strikes / "frame-2").exists()
    assert_same_video(Home(tmp_path), made, video)


@pytest.mark.thorough
def test_a_worker_out_of_memory_at_a_frame_steps_down(
    tmp_path: Path, client: Client, strikes: Path, clip: dict[str, Any], video: tuple[Home, Result]
) -> None:
    (strikes / "scarce-3").touch()
    made = rendered(Home(tmp_path), client, clip, OPTIONS)
    (strikes / "scarce-3").unlink()
    assert_same_video(Home(tmp_path), made, video)
    manifests = [Home(tmp_path).store.find(o.key) for o in made.outcomes if o.call.stage.name == "decode"]
    taken = tuple(saving.name for saving in SAVINGS if "vae" in saving.parts)
    assert [found.savings for found in manifests] == [taken] * 2  # type: ignore[union-attr]


def test_a_slow_task_holds_back_those_far_after_it(tmp_path: Path, client: Client) -> None:
    results = WorkerPool(client, StopEvent()).in_order(wait_or_pass, ((tmp_path, n) for n in range(9)), ahead=4)
    assert next(results) == 0
    assert len(list(tmp_path.glob("begun-*"))) <= 4
    assert list(results) == list(range(1, 9))


def evaluated(home: Home, client: Client | None) -> tuple[Evaluation, Readings]:
    evaluation = prepare_evaluation(make_evaluation(MEASURED), home)
    session = session_in(home.root, threads=1, checkpoint_every=0)
    return evaluation, read_all(evaluation, session, pool=client and WorkerPool(client, session.stop))


def numbers(evaluation: Evaluation, readings: Readings) -> Any:
    """All that is written but seconds."""
    record = as_json(evaluation, list(cells(evaluation, readings)), readings)
    for row in (*record["rows"], *record["pictures"]):
        for name in [name for name in row if name.startswith("seconds")]:
            del row[name]
    return record


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Readings]:
    return evaluated(Home(tmp_path_factory.mktemp("measured")), None)


@pytest.mark.thorough
def test_an_evaluation_over_workers_has_the_same_numbers(
    tmp_path: Path, client: Client, measured: tuple[Evaluation, Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, whole = measured
    stop, home = StopEvent(), Home(tmp_path)
    session = Session(home, OPTIONS, Terminal(quiet=True), stop)
    with pytest.raises(Interrupted):
        read_all(evaluation, session, told=lambda done, picture: stop.set(), pool=WorkerPool(client, stop))
    made = len(home.store.list_keys())
    monkeypatch.setattr(Session, "render", None)  # nothing is rendered here
    found = evaluated(home, client)
    assert 0 < made < len(home.store.list_keys())
    record, expected = numbers(*found), numbers(*measured)
    in_hand = [n for n, picture in enumerate(record["pictures"]) if picture["unet_samples"] is None]
    assert len(in_hand) <= 2, "the cost of a picture is unknown only where the stop met a worker in the middle of it"
    for n in in_hand:
        record["pictures"][n]["unet_samples"] = expected["pictures"][n]["unet_samples"]
    assert record == expected
    for one, other in zip(found[1].read, whole.read, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert not list((tmp_path / "cache").glob("stop-*"))


@pytest.mark.thorough
def test_a_picture_that_kills_its_workers_is_told_and_the_others_are_measured(
    tmp_path: Path, client: Client, strikes: Path
) -> None:
    evaluation = prepare_evaluation(make_evaluation(MEASURED), Home(tmp_path))
    poisoned = next(p for p in evaluation.pictures if p.group == "direct")
    (strikes / f"seed-{poisoned.seed}").touch()
    evaluation, readings = evaluated(Home(tmp_path), client)
    assert [p.name for p in readings.failed] == [poisoned.name]
    assert list(readings.failed.values()) == ["every process that was given it died while it ran"]
    (cell,) = cells(evaluation, readings)
    assert (cell.scores[0].n, cell.failed) == (2, 1)


def test_a_stop_reaches_the_tiles(tmp_path: Path, client: Client) -> None:
    session = Session(Home(tmp_path), TILED, Terminal(quiet=True))
    call = prepare(make_spec(SMALL), session.home).plan.exports[0].parents["image"]
    tiles = [Tile(0, 1, ((0, 8), (0, 8)), {})]
    with fanout_over(WorkerPool(client, session.stop), session.home, TILED) as session.helpers:
        run = session.runner(prepare(make_spec(SMALL), session.home)).helpers
        assert run is not None
        session.stop.set()
        with pytest.raises(Interrupted):
            list(run(call).tiles()(tiles, torch.zeros(1, 1)))
        assert len(list(tmp_path.glob(f"cache/tiles/{call.key}/*"))) == 1
    assert not list(tmp_path.glob("cache/tiles/*"))


def test_no_workers_where_none_are_asked_for(tmp_path: Path) -> None:
    home, stop = Home(tmp_path), StopEvent()
    with open_fanout(home, TILED, stop, None, None) as fanout:
        assert fanout is None
    with pytest.raises(SpecError, match="workers: 0"), open_pool(home, stop, None, 0):
        pass


def test_a_stored_map_outlives_its_file(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.float64).view(1, 2, 3, 4)[..., ::2]
    stored = Stored.put(values, tmp_path)
    found = stored.open()
    stored.path.unlink()
    assert torch.equal(found, values)
