"""A session renders jobs one after another with one loaded model; the command line and Prefect both use it.

Nothing here needs Prefect. A spec always names the same run: given again after a crash the run goes on, given again
after its end everything is found done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from flows.rendering.attempts import begin_attempt, end_attempt
from flows.rendering.export import deliver, put, target_path
from flows.rendering.job import to_do
from flows.rendering.live import Both, ProgressFile
from flows.rendering.stop import StopEvent
from stages.device import pick_device
from stages.errors import SpecError
from stages.models.load import Models
from stages.observer import SafeObserver
from stages.planner.budget import check, return_freed
from stages.runner import Interrupted, Runner
from storage import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.home import Home
    from flows.rendering.job import Job
    from stages.call import Call
    from stages.models.load import Helpers, ModelInfo
    from stages.observer import Observer, Outcome
    from stages.spec import RunOptions

UNSAID = "does not say what it predicts; `freescale models --probe` finds out, or `prediction` says it"


@dataclass(frozen=True)
class Result:
    """A finished render."""

    run: str
    outputs: tuple[Path, ...]  # the picture asked for first, then every level's
    pixels_sha256: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        stages = [
            {
                "name": o.call.stage.name,
                "level": o.call.level,
                "fingerprint": o.key,
                "reused": o.reused,
                "resumed_at_step": o.resumed_at_step,
                "seconds": round(o.seconds, 3),
            }
            for o in self.outcomes
        ]
        return {
            "run": self.run,
            "outputs": [str(path) for path in self.outputs],
            "pixels_sha256": self.pixels_sha256,
            "stages": stages,
            "seconds": round(self.seconds, 3),
        }


class RenderHelpers(Protocol):
    """Workers that compute parts of a render: `flows/cluster/fanout.py` has them, a session of one process has none."""

    def helpers_of(self, info: ModelInfo, dtype: str, device: torch.device) -> Callable[[Call], Helpers]:
        """A function that gives the helpers of a call, which compute its tiles and frames."""

    def export(
        self, runner: Runner, job: Job, outcomes: dict[str, Outcome],
        deliver: Callable[[Call, dict[str, Outcome]], object],
    ) -> None:  # fmt: skip
        """Make exports while their parents are made; `deliver` each as soon as it is there."""


@dataclass
class Session:
    """Runs jobs one after another with one loaded model, in one process."""

    home: Home
    options: RunOptions
    observer: Observer
    stop: StopEvent = field(default_factory=StopEvent)
    helpers: RenderHelpers | None = None  # None: this process computes everything
    _models: dict[tuple[str, str], Models] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let nothing that the observer raises reach the work."""
        self._watched = SafeObserver(self.observer)

    def runner(self, job: Job) -> Runner:
        """A runner for a job, with the model kept from the last one where it is the same."""
        return self.runner_for(job.plan.info, job.spec.model.dtype)

    def runner_for(self, info: ModelInfo, dtype: str) -> Runner:
        """A runner for a model with its parameters in `dtype`: by the name that a spec gives it."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        key = (fingerprint(dict(info.fingerprints)), dtype)
        if key not in self._models:
            self._models.clear()  # one model in memory at a time
            self._models[key] = Models(info, dtype, pick_device(self.options.device))
        models = self._models[key]
        helpers = None if self.helpers is None else self.helpers.helpers_of(info, dtype, models.device)
        if self._watched.observer is not self.observer:
            self._watched = SafeObserver(self.observer)
        return Runner(self.home.store, models, self.options, self._watched, self.stop, helpers)

    def release(self) -> None:
        """Take the model off the device; the next job loads it again."""
        self._models.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def render(self, job: Job, out: Path | None = None, overwrite: bool = False, made_for: str | None = None) -> Result:
        """Make the picture or video of every level; with `out`, copy the last one there. Returns paths, hash and times.

        `made_for` is what asks for the run where no person does, such as `evaluation`; `freescale runs` leaves it out.
        Raises `SpecError` before any work where `out` would overwrite another file, where the memory cannot suffice, or
        where nothing says what the model predicts; `Interrupted` when asked to stop; and whatever a stage raised. The
        run's record then says so.
        """
        began = time.monotonic()
        predicted = job.plan.info.prediction
        if predicted is not None and not predicted.is_sure:
            raise SpecError(f"model: {job.plan.info.name} {UNSAID}")
        last = job.plan.exports[-1]
        target = target_path(out, job.run, last.stage, last.key, self.home, overwrite)
        check(to_do(job.plan, self.home), job.plan.info, self.options, pick_device(self.options.device))
        record = begin_attempt(job, self.home, made_for, target)
        outcomes: dict[str, Outcome] = {}
        progress = ProgressFile(self.home, job)
        try:
            runner = self.runner(job)
            runner.observer = Both(runner.observer, SafeObserver(progress))
            if self.helpers is not None:
                self.helpers.export(runner, job, outcomes, lambda call, made: self._deliver(runner, job, call, made))
            levels = [self._deliver(runner, job, export, outcomes) for export in job.plan.exports]
            digest = bytes(runner.read(last, outcomes)["pixels_sha256"].numpy())
            fetch = partial(runner.file_path, last, outcomes=outcomes)
            final = put(last, target, fetch, digest, overwrite) if target else None
        except Interrupted as stopped:
            why = self.stop.why
            state = "cancelled" if why == "cancelled" else "interrupted"
            end_attempt(
                self.home.runs, record, state, f"{stopped}" + (f" ({why})" if why else ""), (), self._watched.remarks()
            )
            raise
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            end_attempt(self.home.runs, record, state, f"{type(error).__name__}: {error}", (), self._watched.remarks())
            raise
        finally:
            progress.remove()
            return_freed()
        outputs = tuple(path for path in (final, *reversed(levels)) if path is not None)
        end_attempt(self.home.runs, record, "done", None, outputs, self._watched.remarks())
        return Result(job.run, outputs, digest.hex(), tuple(outcomes.values()), time.monotonic() - began)

    def _deliver(self, runner: Runner, job: Job, export: Call, outcomes: dict[str, Outcome]) -> Path:
        """One level's picture or video, in the run's folder as soon as it is there; a video's previews beside it."""
        return deliver(export, self.home.outputs(job.run), lambda name: runner.file_path(export, name, outcomes))
