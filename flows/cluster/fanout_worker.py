"""The part of one render that runs in a worker process: tiles, frames and exports of a call that was sent here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flows.cluster.stored import Stored
from flows.cluster.worker import worker_session
from stages.device import device_name
from stages.errors import SpecError
from stages.models.load import Models
from stages.observer import NullObserver, Outcome
from stages.runner import Runner
from stages.spec import RunOptions
from stages.stage import ByFrame, Tiled
from storage import ArtifactNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from flows.home import Home
    from freescale.vae.tile import Tile, TiledVae
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.stage import Parents


@dataclass(frozen=True)
class CallTask:
    """A call, and what a worker needs to find its parents and its model."""

    home: Home
    options: dict[str, Any]  # the fields of `RunOptions`
    info: ModelInfo
    dtype: str
    call: Call


_inputs: dict[tuple[Path, str], tuple[Parents, Models]] = {}  # of the last call: its parents' tensors and its model
_tiled: dict[tuple[Path, str, int], TiledVae] = {}  # of the last call and frame
_maps: dict[Stored, Tensor] = {}  # the map of the last tiles


def make_frame(task: CallTask, threads: int, device: str, folder: Path, options: dict[str, Any], index: int) -> Stored:
    """Compute frame `index` of a video and write it to a file in `folder`.

    `options` are the render's at this moment, which out of memory may have changed. Raises `SpecError` where this
    worker's device is not `device`.
    """
    (parents, models), current = _inputs_of(task, device), RunOptions.model_validate(options)
    stage = task.call.stage
    assert isinstance(stage, ByFrame)
    models.make_room(task.call.stage.parts, current.offload, current.by_blocks)
    with _threads(threads):
        return Stored.put(stage.make_frame(parents, models, current, index), folder)


def compute_tiles(
    task: CallTask, threads: int, device: str, frame: int, stored: Stored | None, folder: Path, tiles: tuple[Tile, ...]
) -> list[Tensor | Stored]:
    """Compute tiles of a picture, or of a frame of a video, from the map in `stored`.

    Sums of group norms come back as tensors, pixels and maps as files in `folder`. Raises `SpecError` where this
    worker's device is not `device`.
    """
    tiled = _tiled_of(task, device, frame)
    if stored is not None and stored not in _maps:
        _maps.clear()
        _maps[stored] = stored.open()
    held = None if stored is None else _maps[stored]
    made: list[Tensor | Stored] = []
    with _threads(threads):
        for tile in tiles:
            values = tiled.compute(tile, held)
            made.append(values if tile.groups else Stored.put(values, folder))
    return made


def export(task: CallTask) -> tuple[bool, float]:
    """Make an export whose picture is in the store; return whether the export was there already, and seconds.

    Raises `ArtifactNotFoundError` or `DamagedArtifactError` for the picture.
    """
    outcomes = dict[str, Outcome]()
    models = Models(task.info, task.dtype, torch.device("cpu"))  # none of which is loaded for an export
    outcome = outcomes[_OneCallRunner.of(task, models).ensure(task.call, outcomes)]
    return outcome.reused, outcome.seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as the render has: a sum may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tiled_of(task: CallTask, device: str, frame: int) -> TiledVae:
    key = (task.home.root, task.call.key, frame)
    if key not in _tiled:
        (parents, models), stage = _inputs_of(task, device), task.call.stage
        assert isinstance(stage, Tiled)
        _tiled.clear()
        _tiled[key] = stage.tiled(parents, models, frame)
    return _tiled[key]


def _inputs_of(task: CallTask, device: str) -> tuple[Parents, Models]:
    key = (task.home.root, task.call.key)
    if key not in _inputs:
        models = worker_session(task.home, task.options).runner_for(task.info, task.dtype).models
        if device_name(models.device) != device:
            raise SpecError(f"workers: one computes on {device_name(models.device)}, the render on {device}")
        _inputs.clear()
        _inputs[key] = (_OneCallRunner.of(task, models).parents(task.call, {}), models)
    return _inputs[key]


@dataclass
class _OneCallRunner(Runner):
    """A runner that makes one call; what the call is made from has to be in the store."""

    only: Call | None = None

    @classmethod
    def of(cls, task: CallTask, models: Models) -> _OneCallRunner:
        """A runner for the call of a task."""
        options = RunOptions.model_validate(task.options)
        return cls(task.home.store, models, options, NullObserver(), only=task.call)

    def make(self, call: Call, key: str, outcomes: dict[str, Outcome]) -> Outcome:
        """Raises `ArtifactNotFoundError` for any other call."""
        if call is not self.only:
            raise ArtifactNotFoundError(f"{call.label} ({key[:8]}) is not in the store.")
        return super().make(call, key, outcomes)
