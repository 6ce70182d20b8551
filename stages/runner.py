"""Look up, run, commit: the only place where a stage meets a disk.

`Runner.render` makes a plan's exports. It looks for parents only where something has to be made. A stage is made once:
its key is looked up, a lease keeps a second process from doing the same work, and its result counts once its manifest
is there. Long stages leave checkpoints, by the clock and when asked to stop; videos leave every whole frame. The store
moves a damaged artifact to its trash, and the runner makes it again from its parents.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from freescale.attention import attention_name
from stages.device import device_id, device_name, peak_memory
from stages.observer import Outcome
from stages.planner.budget import fitted, next_saving
from stages.resume import Progress, filled, noted, resumed, save
from stages.stage import ByFrame, Tiled, WritesFiles
from storage import (
    ArtifactNotFoundError,
    ArtifactStore,
    Checkpoints,
    DamagedArtifactError,
    Pieces,
    Unfinished,
    device_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from freescale import Step
    from stages.call import Call
    from stages.models.load import Helpers, Models
    from stages.observer import Observer
    from stages.plan import Plan
    from stages.resume import Made
    from stages.spec import RunOptions
    from stages.stage import Tensors
    from storage import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")


class Interrupted(BaseException):
    """Asked to stop: everything done is committed, the step in flight is in a checkpoint."""

    def __init__(self, call: Call | None, step: int | None) -> None:
        super().__init__(f"stopped in {call.label} after step {step}" if call and step else "stopped between stages")
        self.call, self.step = call, step


@dataclass
class Runner:
    """Makes the calls of plans in one store. `stop` may be set from a signal handler or another thread."""

    store: ArtifactStore
    models: Models
    options: RunOptions
    observer: Observer
    stop: threading.Event = field(default_factory=threading.Event)
    helpers: Callable[[Call], Helpers] | None = None  # compute tiles and frames of a call; None: this process does

    def render(self, plan: Plan) -> list[Outcome]:
        """Make every export of the plan, in order. Return the outcomes of all calls looked at, parents first.

        Raises `Interrupted` when asked to stop, and `StageError` for a result that cannot be right.
        """
        outcomes: dict[str, Outcome] = {}
        for export in plan.exports:
            self.ensure(export, outcomes)
        return list(outcomes.values())

    def ensure(self, call: Call, outcomes: dict[str, Outcome]) -> str:
        """Return the key of a call's artifact, made now if it is not there. Raises `Interrupted` when asked to stop."""
        key = call.key
        if key in outcomes and self.store.find(key) is not None:
            return key
        if self.store.find(key) is None:
            for parent in call.parents.values():
                self.ensure(parent, outcomes)
            with self._device():
                outcome = self.make(call, key, outcomes)
        else:
            outcome = Outcome(call, key, reused=True)
        outcomes[key] = outcome
        self.observer.finished(outcome)
        return key

    def read(self, call: Call, outcomes: dict[str, Outcome]) -> Tensors:
        """A call's tensors, verified; a damaged artifact is made again from its parents first."""
        return self._healed(call, outcomes, self.store.read)

    def parents(self, call: Call, outcomes: dict[str, Outcome]) -> dict[str, Tensors]:
        """The parents' tensors by role, as the call's stage takes them."""
        return {role: self._parent(call, role, outcomes) for role in call.parents}

    def _parent(self, call: Call, role: str, outcomes: dict[str, Outcome]) -> Tensors:
        """A parent's tensors, or a reader of them where the stage takes frames or regions."""
        found: Any
        if role in call.stage.by_region:
            found = self._healed(call.parents[role], outcomes, self.store.open_pictures)
        elif role in call.stage.streamed:
            found = self._healed(call.parents[role], outcomes, self.store.open_frames)
        else:
            return self.read(call.parents[role], outcomes)
        return dict(found)

    def _healed(self, call: Call, outcomes: dict[str, Outcome], read: Callable[[str], T]) -> T:
        """Read an artifact; one that is damaged or gone is made again first, at most twice."""
        for _ in range(2):
            try:
                return read(self.ensure(call, outcomes))
            except (DamagedArtifactError, ArtifactNotFoundError) as error:  # or pruned since
                log.warning("%s: %s; making it again", call.label, error)
        return read(self.ensure(call, outcomes))

    def file_path(self, call: Call, name: str, outcomes: dict[str, Outcome]) -> Path:
        """The path of a file of a call's artifact, verified, to be copied; a damaged artifact is made again first."""
        return self._healed(call, outcomes, lambda key: self.store.file_path(key, name))

    def read_file(self, call: Call, name: str, outcomes: dict[str, Outcome]) -> bytes:
        """The bytes of a file of a call's artifact, verified; a damaged artifact is made again first."""
        return self._healed(call, outcomes, lambda key: self.store.read_file(key, name))

    def _device(self) -> Any:
        """A lock: one render at a time on a GPU; the operating system shares a CPU."""
        if self.models.device.type == "cpu":
            return nullcontext()
        return device_lock(self.store.backend.machine, device_id(self.models.device), on_wait=self._waiting)

    def make(self, call: Call, key: str, outcomes: dict[str, Outcome]) -> Outcome:
        """Run one stage whose parents are there, under its lease, and commit it."""
        self._check_stop(None, None)
        parents = self.parents(call, outcomes)
        with self.store.lease(key, on_wait=self._waiting):
            if self.store.find(key) is not None:  # another process made it while we waited
                return Outcome(call, key, reused=True)
            began, samples = time.monotonic(), self.models.unet_samples
            if self.models.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.models.device)
            checkpoints = Checkpoints(self.store, key)
            unfinished, resume = Unfinished(checkpoints), resumed(checkpoints)
            at = len(unfinished) if resume is None else resume.index + 1
            resumed_at = at if at and call.stage.span[1] else None
            self.observer.started(call, resumed_at)
            made, savings = self._run(call, parents, checkpoints, unfinished, resume)
            with writing(self.store, call) as writer:
                for name, array in made.items():
                    if isinstance(array, Pieces):
                        writer.put_pieces(name, array)
                    else:
                        writer.put(name, array, call.stage.axes_of(name, array.ndim))
                tools = dict[str, str]()
                if isinstance(call.stage, WritesFiles):
                    call.stage.write_files(parents, writer.files_folder())
                    tools = call.stage.tools()
                seconds = time.monotonic() - began
                writer.describe(
                    seconds=seconds,
                    device=device_name(self.models.device),
                    libraries=libraries() | _attention(call, self.models) | tools,
                    resumed_at=[] if resumed_at is None else [resumed_at],
                    peak_memory=peak_memory(self.models.device),
                    savings=savings,
                    counts={"unet_samples": n} if (n := self.models.unet_samples - samples) else {},
                )
            checkpoints.clear()
        return Outcome(call, key, False, seconds, resumed_at)

    def _run(
        self,
        call: Call,
        parents: Mapping[str, Tensors],
        checkpoints: Checkpoints,
        unfinished: Unfinished,
        resume: Step | None,
    ) -> tuple[Made, list[str]]:
        """Run a stage to its end: its result, and the names of the savings that it took.

        Out of memory, it takes the next saving and goes on from the last step or frame that is done.
        """
        options, savings = fitted(call, self.models.info, self.options, self.models.device)
        while True:
            able = self.helpers is not None and isinstance(call.stage, Tiled | ByFrame)
            self.models.helpers = self.helpers(call) if self.helpers is not None and able else None
            progress = Progress(resume)
            try:
                self.models.make_room(call.stage.parts, options.offload, options.by_blocks)
                running = call.stage.run(parents, self.models, options, progress.last)
                if isinstance(running, dict):
                    return self._consume(call, filled(running, unfinished), unfinished.flush), savings
                keep = partial(save, checkpoints, progress)
                return self._consume(call, noted(running, progress), keep), savings
            except torch.OutOfMemoryError:
                saving = next_saving(call.stage.parts, savings, options)
                if saving is None:
                    raise
            log.warning("%s: out of memory; going on with %s", call.label, saving.name)
            savings.append(saving.name)
            options, resume = options.model_copy(update=dict(saving.change)), progress.last
            if self.models.device.type == "cuda":  # here, where the error no longer holds what the stage had made
                torch.cuda.empty_cache()

    def _consume(self, call: Call, steps: Generator[int, None, T], keep: Callable[[], None]) -> T:
        """Drive a stage by its `steps`, counted from 1: observe each, `keep` by the clock, and stop when asked to."""
        kept, cost = time.monotonic(), 0.0
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            except Exception:
                raise
            except BaseException:  # killed inside a step: keep the steps before
                keep()
                raise
            if call.stage.span[1]:  # a picture that comes in bands is one step
                self.observer.stepped(call, step)
            # at most 2 % of the time goes into checkpoints, whatever interval was asked for
            due = time.monotonic() - kept >= max(self.options.checkpoint_every, 50 * cost)
            if due or self.stop.is_set():
                began = time.monotonic()
                keep()
                kept = time.monotonic()
                cost = kept - began
            self._check_stop(call, step)

    def _waiting(self, seconds: float) -> None:
        """Called while another process holds what we need: a lease or the device."""
        self._check_stop(None, None)

    def _check_stop(self, call: Call | None, step: int | None) -> None:
        if self.stop.is_set():
            raise Interrupted(call, step)


def writing(store: ArtifactStore, call: Call) -> AbstractContextManager[Writer]:
    """Return the context in which a call's artifact is filled: `ArtifactStore.writing`, which commits at its end."""
    return store.writing(
        call.key,
        stage=call.stage.name,
        version=call.stage.key_version(),
        level=call.level,
        params={**call.stage.params(), **({"model": call.model} if call.model else {})},
        parents={role: parent.key for role, parent in call.parents.items()},
    )


def _attention(call: Call, models: Models) -> dict[str, str]:
    """The attention kernels a UNet's stage was computed with, in torch's order of choice."""
    return {"attention": attention_name(models.device, models.dtype)} if call.stage.part == "unet" else {}


def libraries() -> dict[str, str]:
    """Versions that are recorded beside an artifact, and decide nothing."""
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in ("torch", "diffusers", "zarr", "numpy")}
