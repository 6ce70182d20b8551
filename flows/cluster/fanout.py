"""One render over the workers of a Dask cluster: the tiles of the VAE, the frames of videos, and the exports.

A task is a call of the plan and a few numbers (`flows/cluster/fanout_worker.py`); a worker finds what the call is made
from in the store. The maps that tiles are made from, and the tiles and frames that come back, are files in the home's
`cache/tiles/<key>`, mapped where they are read. A task whose worker died goes to another worker: it gives the same bits
wherever and however often it is computed.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from flows.batch.runner import POLL_SECONDS
from flows.cluster.fanout_worker import CallTask, compute_tiles, export, make_frame
from flows.cluster.pool import WorkerPool, open_pool, result_of
from flows.cluster.stored import Stored
from stages.device import device_name
from stages.observer import Outcome
from storage import ArtifactNotFoundError, DamagedArtifactError, LeaseTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from flows.home import Home
    from flows.rendering.job import Job
    from freescale.vae.passes import Run
    from freescale.vae.tile import Tile
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.models.load import Helpers
    from stages.runner import Runner
    from stages.spec import RunOptions

GROUPS = 4  # of tiles that each worker computes in one pass over many tiles
FRAMES_AHEAD = 2  # for each worker: frames that are computed, or wait for a frame before them


@contextmanager
def open_fanout(
    home: Home, options: RunOptions, stop: threading.Event, address: str | None, workers: int | None
) -> Iterator[Fanout | None]:
    """A fan-out over the workers of a scheduler or of this machine; None where neither is asked for.

    Raises `SpecError` where there are none, or both are asked for.
    """
    with open_pool(home, stop, address, workers) as pool, fanout_over(pool, home, options) as fanout:
        yield fanout


@contextmanager
def fanout_over(pool: WorkerPool | None, home: Home, options: RunOptions) -> Iterator[Fanout | None]:
    """A fan-out over workers that are there; the files that tiles were made from are deleted at the end."""
    if pool is None:
        yield None
        return
    _delete_leftovers(home)
    try:
        yield Fanout(pool, home, options)
    finally:
        _delete_leftovers(home)


@dataclass(frozen=True)
class Fanout:
    """A pool of workers that help inside one render: the `RenderHelpers` of `flows/rendering/session.py`."""

    pool: WorkerPool
    home: Home
    options: RunOptions

    def helpers_of(self, info: ModelInfo, dtype: str, device: torch.device) -> Callable[[Call], Helpers]:
        """A function that gives the helpers of a call: they compute its tiles and frames on the workers."""
        return lambda call: CallHelpers(self.pool, self._task(call, info, dtype), device_name(device))

    def export(
        self, runner: Runner, job: Job, outcomes: dict[str, Outcome],
        deliver: Callable[[Call, dict[str, Outcome]], object],
    ) -> None:  # fmt: skip
        """Make here what exports are made from, and have a worker make each export while that goes on.

        Each export is delivered as soon as it is made. One whose parents a worker finds missing or damaged is left to
        the runner. Raises what a stage raises.
        """

        over = threading.Event()

        def made(call: Call) -> Outcome | None:
            """Deliver an export once a worker made it; return None where it is left to the runner."""
            outcome = self._exported(self._task(call, job.plan.info, job.spec.model.dtype), over)
            if outcome is not None:
                runner.observer.finished(outcome)
                deliver(call, {outcome.key: outcome})
            return outcome

        with ThreadPoolExecutor(len(job.plan.exports)) as executor:
            waiting = []
            try:
                for call in job.plan.exports:
                    if runner.store.find(call.key) is None:
                        for parent in call.parents.values():
                            runner.ensure(parent, outcomes)
                        outcomes[call.key] = Outcome(call, call.key, reused=False)  # keeps its position among them
                        waiting.append(executor.submit(made, call))
                found = [future.result() for future in waiting]
            except BaseException:
                over.set()
                raise
        outcomes |= {outcome.key: outcome for outcome in found if outcome is not None}

    def _exported(self, task: CallTask, over: threading.Event) -> Outcome | None:
        future = self.pool.submit(export, task)
        while not future.done():
            if self.pool.stop.is_set() or over.wait(POLL_SECONDS / 10):
                return None
        try:
            reused, seconds = result_of(future)
        except (ArtifactNotFoundError, DamagedArtifactError):
            return None
        return Outcome(task.call, task.call.key, reused, seconds)

    def _task(self, call: Call, info: ModelInfo, dtype: str) -> CallTask:
        return CallTask(self.home, self.options.model_dump(), info, dtype, call)


@dataclass
class CallHelpers:
    """The workers, helping with one call: the `Helpers` of `stages/models/load.py`."""

    pool: WorkerPool
    task: CallTask
    device: str
    _map: tuple[tuple[int, int], Stored] | None = field(default=None)  # of the tiles now: (frame, layer) and its file

    def tiles(self, frame: int = 0) -> Run:
        """A function that computes tiles of a frame on the workers: the `Run` of `freescale/vae/passes.py`."""
        return partial(self._tiles, frame)

    def frames(self, indices: Iterable[int], options: RunOptions) -> Iterator[Tensor]:
        """The frames of these indices, in order, each a task; those that are made ahead lie in files."""
        common = (self.task, torch.get_num_threads(), self.device, self._folder(), options.model_dump())
        tasks = ((*common, index) for index in indices)
        return map(_opened, self.pool.in_order(make_frame, tasks, ahead=FRAMES_AHEAD * self.pool.width))

    def _tiles(self, frame: int, tiles: list[Tile], held: Tensor | None) -> Iterator[Tensor]:
        folder = self._folder()
        stored = self._stored_map((frame, tiles[0].start), held, folder)
        common = (self.task, torch.get_num_threads(), self.device, frame, stored, folder)
        size = max(len(tiles) // (GROUPS * self.pool.width), 1)
        groups = (tuple(tiles[first : first + size]) for first in range(0, len(tiles), size))
        for results in self.pool.in_order(compute_tiles, ((*common, group) for group in groups)):
            yield from map(_opened, results)

    def _stored_map(self, which: tuple[int, int], held: Tensor | None, folder: Path) -> Stored | None:
        """The map as a file, written once for all passes that are made from it."""
        if self._map is not None and self._map[0] != which:
            self._map[1].path.unlink()
            self._map = None
        if held is not None and self._map is None:
            self._map = (which, Stored.put(held, folder))
        return None if self._map is None else self._map[1]

    def _folder(self) -> Path:
        """Where the maps and tiles of the call lie while its lease is held."""
        folder = self.task.home.root / "cache" / "tiles" / self.task.call.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _opened(result: Tensor | Stored) -> Tensor:
    """The values of a tile or frame; its file is deleted once it is mapped."""
    if not isinstance(result, Stored):
        return result
    values = result.open()
    result.path.unlink()
    return values


def _delete_leftovers(home: Home) -> None:
    """Delete the files of renders that are over, or whose process was killed."""
    for folder in home.root.glob("cache/tiles/*"):
        with suppress(LeaseTimeoutError), home.store.lease(folder.name, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
