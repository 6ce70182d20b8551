"""Workers of a real Dask cluster inside one render and one evaluation: the same bits as alone, deaths, a stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.crew import Crew, crew_of
from flows.evaluation import prepare_evaluation
from flows.evaluation_report import as_json
from flows.fleet import cluster
from flows.home import Home
from flows.measuring import Readings, cells, read_all
from flows.progress import Terminal
from flows.session import Session, prepare
from flows.spread import Stored, helping, spread_over
from freescale.vae_tile import Tile
from stages.measures.spec import make_evaluation
from stages.runner import Interrupted, key_of
from stages.spec import RunOptions, SpecError, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from flows.evaluation import Evaluation
    from flows.session import Result

OPTIONS = RunOptions(threads=1, checkpoint_every=0)
TILED = RunOptions(threads=1, vae_memory=5 << 20, vae_tile=64)  # less than any half of the VAE takes whole
SMALL: dict[str, Any] = {
    "prompt": "a green ring on sand",
    "width": 128,
    "height": 96,
    "cascade": [[96, 72], [128, 96]],
    "steps": 2,
}
MEASURED: dict[str, Any] = {
    "methods": ["direct"],
    "sizes": ["192x128"],
    "count": 3,
    "steps": 3,
    "metrics": ["is", "objects"],
    "draws": 10,
}

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours


def strike(dask_worker: Any) -> None:
    """Let the files of a folder say when this worker dies: at so many tiles, or always at a picture of a seed."""
    from freescale.vae_tile import TiledVae

    folder = Path(os.environ["FREESCALE_STRIKES"])
    computing, rendering, count = TiledVae.compute, Session.render, [0]

    def compute(self: TiledVae, *how: Any) -> Any:
        count[0] += 1
        (folder / f"computed-{os.getpid()}").touch()
        if (sign := folder / "tile").exists() and count[0] % 5 == 0:
            sign.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return computing(self, *how)

    def render(self: Session, job: Any, *how: Any) -> Any:
        if (folder / f"seed-{job.spec.seed}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return rendering(self, job, *how)

    TiledVae.compute, Session.render = compute, render  # type: ignore[method-assign]


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
            strike(worker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREESCALE_STRIKES", str(strikes))
        with cluster(Home(tmp_path_factory.mktemp("dask")), None, 2, deaths=1) as client:
            client.register_plugin(Strikes())
            yield client


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return rendered(Home(tmp_path_factory.mktemp("alone")), None)


def rendered(home: Home, client: Client | None) -> Result:
    session = Session(home, TILED, Terminal(quiet=True))
    with helping(client and Crew(client, session.stop), home, TILED) as session.spread:
        return session.render(prepare(make_spec(SMALL), home))


def test_a_render_over_workers_has_the_same_pixels(
    tmp_path: Path, client: Client, strikes: Path, alone: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freescale.vae_tile import TiledVae

    monkeypatch.setattr(TiledVae, "compute", None)  # nothing is computed here
    made = rendered(Home(tmp_path), client)
    assert made.pixels_sha256 == alone.pixels_sha256
    assert len(list(strikes.glob("computed-*"))) == 2
    assert [o.call.stage.name for o in made.outcomes] == [o.call.stage.name for o in alone.outcomes]
    assert not any(outcome.reused for outcome in made.outcomes)
    assert len([path for path in made.outputs if path.is_file()]) == 2
    assert not list(tmp_path.glob("cache/tiles/*"))


def test_a_worker_killed_at_a_tile_changes_nothing(
    tmp_path: Path, client: Client, strikes: Path, alone: Result
) -> None:
    (strikes / "tile").touch()
    made = rendered(Home(tmp_path), client)
    assert not (strikes / "tile").exists()
    assert made.pixels_sha256 == alone.pixels_sha256
    assert not any(outcome.reused for outcome in made.outcomes)


def evaluated(home: Home, client: Client | None) -> tuple[Evaluation, Readings]:
    evaluation = prepare_evaluation(make_evaluation(MEASURED), home)
    session = Session(home, OPTIONS, Terminal(quiet=True))
    return evaluation, read_all(evaluation, session, crew=client and Crew(client, session.stop))


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


def test_an_evaluation_over_workers_has_the_same_numbers(
    tmp_path: Path, client: Client, measured: tuple[Evaluation, Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, whole = measured
    stop, home = threading.Event(), Home(tmp_path)
    session = Session(home, OPTIONS, Terminal(quiet=True), stop)
    with pytest.raises(Interrupted):
        read_all(evaluation, session, told=lambda done, picture: stop.set(), crew=Crew(client, stop))
    made = len(home.store.list_keys())
    monkeypatch.setattr(Session, "render", None)  # nothing is rendered here
    found = evaluated(home, client)
    assert 0 < made < len(home.store.list_keys())
    assert numbers(*found) == numbers(*measured)
    for one, other in zip(found[1].read, whole.read, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert not list((tmp_path / "cache").glob("stop-*"))


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
    with helping(Crew(client, session.stop), session.home, TILED) as session.spread:
        run = session.runner(prepare(make_spec(SMALL), session.home)).helpers
        assert run is not None
        session.stop.set()
        with pytest.raises(Interrupted):
            list(run(call).tiles()(tiles, torch.zeros(1, 1)))
        assert len(list(tmp_path.glob(f"cache/tiles/{key_of(call)}/*"))) == 1
    assert not list(tmp_path.glob("cache/tiles/*"))


def test_no_workers_where_none_are_asked_for(tmp_path: Path) -> None:
    home, stop = Home(tmp_path), threading.Event()
    with spread_over(home, TILED, stop, None, None) as spread:
        assert spread is None
    with pytest.raises(SpecError, match="workers: 0"), crew_of(home, stop, None, 0):
        pass


def test_a_stored_map_outlives_its_file(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.float64).view(1, 2, 3, 4)[..., ::2]
    stored = Stored.put(values, tmp_path)
    found = stored.open()
    stored.path.unlink()
    assert torch.equal(found, values)
