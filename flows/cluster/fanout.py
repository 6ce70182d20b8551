"""Inside one render: the VAE's tiles, the frames of videos and the exports, computed by the workers of a Dask cluster.

A task is a call of the plan and a few numbers; it finds what it is made from in the store. The maps that tiles are made
from, and the tiles and frames that come back, are files in the home's `cache/tiles/<key>`, mapped where they are read.
A task whose worker died is given to another: it gives the same bits wherever and however often it is computed.
"""

from __future__ import annotations

import math
import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flows.batch.runner import POLL
from flows.cli.terminal import Terminal
from flows.cluster.batch import session_of
from flows.cluster.pool import Crew, crew_of, result_of
from stages.device import device_name
from stages.errors import SpecError
from stages.models.load import Models
from stages.observer import Outcome
from stages.runner import Runner
from stages.spec import RunOptions
from storage import ArtifactNotFoundError, DamagedArtifactError, LeaseTimeoutError
from storage.errors import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flows.home import Home
    from flows.rendering.session import Job
    from freescale.vae.passes import Run
    from freescale.vae.tile import Tile, TiledVae
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.stage import Helpers, Parents

GROUPS = 4  # tasks that each worker gets in a pass over many tiles
AHEAD = 2  # frames a worker that are at work, or wait for one before them


@contextmanager
def spread_over(
    home: Home, options: RunOptions, stop: threading.Event, address: str | None, workers: int | None
) -> Iterator[Spread | None]:
    """The same, to help inside one render."""
    with crew_of(home, stop, address, workers) as crew, helping(crew, home, options) as spread:
        yield spread


@contextmanager
def helping(crew: Crew | None, home: Home, options: RunOptions) -> Iterator[Spread | None]:
    """A crew at one render's hand; in the end nothing is left that tiles were made from."""
    if crew is None:
        yield None
        return
    _sweep(home)
    try:
        yield Spread(crew, home, options)
    finally:
        _sweep(home)


@dataclass(frozen=True)
class Work:
    """A call, and all that a worker needs to meet it."""

    home: Home
    options: dict[str, Any]
    info: ModelInfo
    dtype: str
    call: Call


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, read where it lies."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def put(cls, values: Tensor, folder: Path) -> Stored:
        """Write a tensor of the CPU to a new file."""
        path = folder / uuid.uuid4().hex
        with explained(path), path.open("xb") as out:
            out.write(values.contiguous().numpy().data)
        return cls(path, tuple(values.shape), values.dtype)

    def open(self) -> Tensor:
        """Map it; it is read as far as it is used, also after the file was deleted."""
        size = math.prod(self.shape)
        return torch.from_file(str(self.path), shared=False, size=size, dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class Spread:
    """A crew at one render's hand."""

    crew: Crew
    home: Home
    options: RunOptions

    def helpers_of(self, info: ModelInfo, dtype: str, device: torch.device) -> Callable[[Call], Helpers]:
        """What the runner asks for each call: who computes its tiles and frames."""
        return lambda call: _Helpers(self.crew, self._work(call, info, dtype), device_name(device))

    def export(
        self, runner: Runner, job: Job, outcomes: dict[str, Outcome],
        deliver: Callable[[Call, dict[str, Outcome]], object],
    ) -> None:  # fmt: skip
        """Make all that exports are made from here, and have each export made by a worker while that goes on.

        Each is delivered as soon as it is made. What a worker finds missing or damaged is left to the runner.
        """

        over = threading.Event()

        def made(call: Call) -> Outcome | None:
            outcome = self._exported(self._work(call, job.plan.info, job.spec.model.dtype), over)
            if outcome is not None:
                runner.observer.finished(outcome)
                deliver(call, {outcome.key: outcome})
            return outcome

        with ThreadPoolExecutor(len(job.plan.exports)) as hands:
            waiting = []
            try:
                for call in job.plan.exports:
                    if runner.store.find(call.key) is None:
                        for parent in call.parents.values():
                            runner.ensure(parent, outcomes)
                        outcomes[call.key] = Outcome(call, call.key, reused=False)  # its place among them
                        waiting.append(hands.submit(made, call))
                found = [hand.result() for hand in waiting]
            except BaseException:
                over.set()
                raise
        outcomes |= {outcome.key: outcome for outcome in found if outcome is not None}

    def _exported(self, work: Work, over: threading.Event) -> Outcome | None:
        future = self.crew.submit(export, work)
        while not future.done():
            if self.crew.stop.is_set() or over.wait(POLL / 10):
                return None
        try:
            reused, seconds = result_of(future)
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None
        return Outcome(work.call, work.call.key, reused, seconds)

    def _work(self, call: Call, info: ModelInfo, dtype: str) -> Work:
        return Work(self.home, self.options.model_dump(), info, dtype, call)


@dataclass
class _Helpers:
    """The crew at one call's hand: the `Helpers` of `stages/stage.py`."""

    crew: Crew
    work: Work
    device: str
    _map: tuple[tuple[int, int], Stored] | None = field(default=None)  # tiles are made from it now: frame, layer, file

    def tiles(self, frame: int = 0) -> Run:
        """Who computes tiles: the `Run` of `freescale/vae/passes.py`."""
        return partial(self._tiles, frame)

    def frames(self, indices: Iterable[int], options: RunOptions) -> Iterator[Tensor]:
        """A frame a task; no more are made ahead than keep the workers busy, and those lie in files."""
        how = (self.work, torch.get_num_threads(), self.device, self._folder(), options.model_dump())
        tasks = ((*how, index) for index in indices)
        return map(_taken, self.crew.in_order(make_frame, tasks, ahead=AHEAD * self.crew.width))

    def _tiles(self, frame: int, tiles: list[Tile], held: Tensor | None) -> Iterator[Tensor]:
        folder = self._folder()
        where = self._shared((frame, tiles[0].start), held, folder)
        how = (self.work, torch.get_num_threads(), self.device, frame, where, folder)
        some = max(len(tiles) // (GROUPS * self.crew.width), 1)
        groups = (tuple(tiles[first : first + some]) for first in range(0, len(tiles), some))
        for results in self.crew.in_order(compute, ((*how, group) for group in groups)):
            yield from map(_taken, results)

    def _shared(self, which: tuple[int, int], held: Tensor | None, folder: Path) -> Stored | None:
        """The map as a file, written once for all passes that are made from it."""
        if self._map is not None and self._map[0] != which:
            self._map[1].path.unlink()
            self._map = None
        if held is not None and self._map is None:
            self._map = (which, Stored.put(held, folder))
        return None if self._map is None else self._map[1]

    def _folder(self) -> Path:
        folder = _folder(self.work.home, self.work.call.key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _taken(result: Tensor | Stored) -> Tensor:
    """What a tile or frame came to; its file goes once it is mapped."""
    if not isinstance(result, Stored):
        return result
    values = result.open()
    result.path.unlink()
    return values


def _folder(home: Home, key: str) -> Path:
    """Where the maps and tiles of a call lie while its lease is held."""
    return home.root / "cache" / "tiles" / key


def _sweep(home: Home) -> None:
    """Delete what renders left that are over, or were killed."""
    for folder in home.root.glob("cache/tiles/*"):
        with suppress(LeaseTimeoutError), home.store.lease(folder.name, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


# From here on: in a worker.

_met: dict[tuple[Path, str], tuple[Parents, Models]] = {}  # what the call that was helped last is made from and with
_tiled: dict[tuple[Path, str, int], TiledVae] = {}  # the call and frame whose tiles were computed last
_opened: dict[Stored, Tensor] = {}  # and the map they were made from


def make_frame(work: Work, threads: int, device: str, folder: Path, options: dict[str, Any], index: int) -> Stored:
    """Compute a frame of a video as the render would, with its options of this moment."""
    (parents, models), how = _meet(work, device), RunOptions.model_validate(options)
    models.make_room(work.call.stage.part, how.offload)
    with _threads(threads):
        return Stored.put(work.call.stage.make_frame(parents, models, how, index), folder)


def compute(
    work: Work, threads: int, device: str, frame: int, where: Stored | None, folder: Path, tiles: tuple[Tile, ...]
) -> list[Tensor | Stored]:
    """Compute tiles of a picture, or of a frame of a video."""
    tiled = _tiled_of(work, device, frame)
    if where is not None and where not in _opened:
        _opened.clear()
        _opened[where] = where.open()
    held, made = None if where is None else _opened[where], list[Tensor | Stored]()
    with _threads(threads):
        for tile in tiles:
            values = tiled.compute(tile, held)
            made.append(values if tile.groups else Stored.put(values, folder))
    return made


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as the render has: a sum may depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tiled_of(work: Work, device: str, frame: int) -> TiledVae:
    key = (work.home.root, work.call.key, frame)
    if key not in _tiled:
        parents, models = _meet(work, device)
        _tiled.clear()
        _tiled[key] = work.call.stage.tiled(parents, models, frame)
    return _tiled[key]


def _meet(work: Work, device: str) -> tuple[Parents, Models]:
    key = (work.home.root, work.call.key)
    if key not in _met:
        models = session_of(work.home, work.options).runner_for(work.info, work.dtype).models
        if device_name(models.device) != device:
            raise SpecError(f"workers: one computes on {device_name(models.device)}, the render on {device}")
        _met.clear()
        _met[key] = (_Only.of(work, models).parents(work.call, {}), models)
    return _met[key]


def export(work: Work) -> tuple[bool, float]:
    """Make an export whose picture is in the store; return whether it was there already, and seconds."""
    outcomes = dict[str, Outcome]()
    models = Models(work.info, work.dtype, torch.device("cpu"))  # none of which is loaded for an export
    outcome = outcomes[_Only.of(work, models).ensure(work.call, outcomes)]
    return outcome.reused, outcome.seconds


@dataclass
class _Only(Runner):
    """A runner for one call: what that is made from it does not make, but finds."""

    only: Call | None = None

    @classmethod
    def of(cls, work: Work, models: Models) -> _Only:
        """For a call that was sent here."""
        options = RunOptions.model_validate(work.options)
        return cls(work.home.store, models, options, Terminal(quiet=True), only=work.call)

    def make(self, call: Call, key: str, outcomes: dict[str, Outcome]) -> Outcome:
        """Raises `ArtifactNotFoundError` for any other call."""
        if call is not self.only:
            raise ArtifactNotFoundError(f"{call.label} ({key[:8]}) is not in the store.")
        return super().make(call, key, outcomes)
