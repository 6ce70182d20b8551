"""One render from a checked spec to files a person can open; both doors, command line and Prefect, go through here.

Nothing here needs Prefect. The same spec is the same run: typed again after a crash it goes on, typed again after
its end it finds everything done.
"""

from __future__ import annotations

import dataclasses
import filecmp
import os
import re
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.call import Call
from stages.device import pick_device
from stages.errors import SpecError
from stages.export import SUFFIXES, Export, check_whole, write_picture
from stages.export_video import PREVIEWS, ExportVideo, encode_video
from stages.media.ffmpeg import check_encoding
from stages.models.load import ModelInfo, Models, describe
from stages.observer import Observer, Outcome
from stages.plan import Plan, make_plan
from stages.planner.budget import check, return_freed
from stages.runner import Interrupted, Runner
from stages.spec import VIDEO_FORMATS, ModelSpec, RenderSpec, RunOptions, make_spec
from storage import Attempt, PlannedCall, RunNotFoundError, RunRecord, Runs, fingerprint, whole_file

if TYPE_CHECKING:
    from flows.cluster.fanout import Spread
    from flows.home import Home


@dataclass(frozen=True)
class Job:
    """A checked spec, ready to run: nothing has been loaded or written yet."""

    run: str
    spec: RenderSpec
    plan: Plan
    origin: str | None = None
    origin_stage: str | None = None


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


def prepare(
    spec: RenderSpec,
    home: Home,
    input_root: Path | None = None,
    origin: str | None = None,
    known: dict[ModelSpec, ModelInfo] | None = None,
) -> Job:
    """Check a spec against the model and the pictures it names. Raises `SpecError` before any work.

    `known` keeps what was found of a model, for many specs at one time.
    """
    known = {} if known is None else known
    if spec.model not in known:
        known[spec.model] = describe(spec.model, home.root)
    plan = make_plan(spec, known[spec.model], input_root)
    stage = spec.redo[-1].stage if origin and spec.redo else None
    return Job(run_name(spec, plan), plan.spec, plan, origin, stage)


def run_name(spec: RenderSpec, plan: Plan) -> str:
    """A name a person can read, and the same for the same bytes: words of the prompt, seed, eight hex digits."""
    words = "-".join(re.findall(r"[a-z0-9]+", spec.prompt.lower()))[:40].strip("-") or "picture"
    return f"{words}-{spec.seed}-{fingerprint([call.key for call in plan.exports])[:8]}"


def load(home: Home, run: str) -> tuple[RunRecord, RenderSpec]:
    """A recorded run and its spec. Raises `SpecError` for a name that is none."""
    try:
        record = home.runs.load(run)
    except (RunNotFoundError, ValueError) as error:
        raise SpecError(f"run: {error}") from None
    return record, RenderSpec.model_validate(dict(record.spec))


@dataclass
class Session:
    """Runs jobs one after another with one loaded model, in one process."""

    home: Home
    options: RunOptions
    observer: Observer
    stop: threading.Event = field(default_factory=threading.Event)
    spread: Spread | None = None  # workers that help inside a render
    _models: dict[tuple[str, str], Models] = field(default_factory=dict)

    def runner(self, job: Job) -> Runner:
        """A runner for a job, with the model kept from the last one where it is the same."""
        return self.runner_for(job.plan.info, job.spec.model.dtype)

    def runner_for(self, info: ModelInfo, dtype: str) -> Runner:
        """The same for a model that is known."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        key = (fingerprint(dict(info.fingerprints)), dtype)
        if key not in self._models:
            self._models.clear()  # one model in memory at a time
            self._models[key] = Models(info, dtype, pick_device(self.options.device))
        models = self._models[key]
        helpers = None if self.spread is None else self.spread.helpers_of(info, dtype, models.device)
        return Runner(self.home.store, models, self.options, self.observer, self.stop, helpers)

    def release(self) -> None:
        """Take the model off the device; the next job loads it again."""
        self._models.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def render(self, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        """Make every level's picture and, with `out`, a copy of the last one there.

        Raises `SpecError` before any work where `out` would overwrite something else or memory cannot suffice,
        `Interrupted` when asked to stop, and whatever a stage raised, with the run's record telling of it.
        """
        began = time.monotonic()
        target = _target(out, job, self.home, overwrite)
        check(to_do(job.plan, self.home), job.plan.info, self.options, pick_device(self.options.device))
        record = _open(job, self.home.runs)
        outcomes: dict[str, Outcome] = {}
        try:
            runner = self.runner(job)
            if self.spread is not None:
                self.spread.export(runner, job, outcomes, lambda call, made: self._deliver(runner, job, call, made))
            levels = [self._deliver(runner, job, export, outcomes) for export in job.plan.exports]
            last = job.plan.exports[-1]
            final = place_copy(runner.file_path(last, file_name(last), outcomes), target) if target else None
            digest = runner.read(last, outcomes)["pixels_sha256"]
        except Interrupted as stopped:
            _close(self.home.runs, record, "interrupted", str(stopped))
            raise
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            _close(self.home.runs, record, state, f"{type(error).__name__}: {error}")
            raise
        finally:
            return_freed()
        outputs = tuple(path for path in (final, *reversed(levels)) if path is not None)
        _close(self.home.runs, record, "done", None, outputs)
        pixels = bytes(digest.numpy()).hex()
        return Result(job.run, outputs, pixels, tuple(outcomes.values()), time.monotonic() - began)

    def _deliver(self, runner: Runner, job: Job, export: Call, outcomes: dict[str, Outcome]) -> Path:
        """One level's picture or video, in the run's folder as soon as it is there; a video's previews beside it."""
        height, width = export.size
        folder, name = self.home.outputs(job.run), f"level-{export.level}-{width}x{height}"
        if isinstance(export.stage, ExportVideo):
            for preview, ending in PREVIEWS.items():
                place_copy(runner.file_path(export, preview, outcomes), folder / f"{name}{ending}")
        file = file_name(export)
        return place_copy(runner.file_path(export, file, outcomes), folder / f"{name}{Path(file).suffix}")


def export_level(
    home: Home, spec: RenderSpec, format: str | None, level: int | None, out: Path, overwrite: bool, **how: Any
) -> Path:
    """Write a level's picture or video of a run in another format; return the path. Raises `SpecError`.

    `how` may hold `fps`, `crf` and `pixel_format` for a video.
    """
    job = prepare(spec.model_copy(update={"crf": None, "pixel_format": None}), home)
    levels = range(len(job.plan.exports))
    if level is not None and level not in levels:
        raise SpecError(f"level: {level} is not one of {', '.join(map(str, levels))}")
    call = job.plan.exports[-1 if level is None else level]
    stage = _exporting(call, format, {name: value for name, value in how.items() if value is not None})
    image = call.parents["image"]
    if home.store.find(image.key) is None:
        raise SpecError(
            f"level: the picture of level {call.level} is not in the store; freescale resume {job.run} makes it"
        )
    suffix = Path(stage.file_name).suffix
    path = out / f"{job.run}-level-{call.level}{suffix}" if out.is_dir() or not out.suffix else out
    if path.exists() and not overwrite:
        raise SpecError(f"out: {str(path)!r} exists; choose another name or say --overwrite")
    path = path.absolute()
    if isinstance(stage, Export):
        check_whole(stage.format, call.size)
        picture = home.store.open_pictures(image.key)["image"]
        with whole_file(path, suffix) as partial:
            write_picture(partial, picture, stage)
        return path
    video = home.store.open_frames(image.key)["image"]
    with whole_file(path, suffix) as partial:
        encode_video(partial, video, stage)
    return path


def _exporting(call: Call, format: str | None, how: dict[str, Any]) -> Export | ExportVideo:
    """The export of a level in another format, checked."""
    stage = call.stage
    if isinstance(stage, Export):
        if how:
            raise SpecError(f"{next(iter(how))}: is for videos, and this run made a picture")
        if format is not None and format not in SUFFIXES:
            raise SpecError(f"format: {format!r} is not one of {', '.join(SUFFIXES)}")
        return dataclasses.replace(stage, format=format or "png")
    assert isinstance(stage, ExportVideo)
    format = format or stage.format
    if format not in VIDEO_FORMATS:
        raise SpecError(f"format: {format!r} is not one of {', '.join(VIDEO_FORMATS)}")
    checked = make_spec({"prompt": "video", "format": format, **how})
    check_encoding(format, call.size, checked.pixel_format)
    fps = checked.fps or stage.fps
    return dataclasses.replace(stage, format=format, fps=fps, crf=checked.crf, pixel_format=checked.pixel_format)


def file_name(export: Call) -> str:
    """The name of an export's picture or video in its artifact."""
    assert isinstance(export.stage, Export | ExportVideo)
    return export.stage.file_name


def _target(out: Path | None, job: Job, home: Home, overwrite: bool) -> Path | None:
    """Where the last picture goes; a folder gets the run's name. An existing file is kept unless this run made it."""
    if out is None:
        return None
    suffix = Path(file_name(job.plan.exports[-1])).suffix
    path = out / f"{job.run}{suffix}" if out.is_dir() or not out.suffix else out
    if path.suffix.lower() != suffix:
        raise SpecError(f"out: {str(path)!r} does not end in {suffix}, the format of this render")
    if path.exists() and not overwrite and not _made_by(path, job, home):
        raise SpecError(f"out: {str(path)!r} exists and is not this run's; choose another name or say --overwrite")
    return path.absolute()


def _made_by(path: Path, job: Job, home: Home) -> bool:
    export = job.plan.exports[-1]
    if home.store.find(export.key) is None or not path.is_file():
        return False
    return filecmp.cmp(path, home.store.file_path(export.key, file_name(export)), shallow=False)


def place(data: bytes, path: Path) -> Path:
    """Write a whole file or none, flushed; a file that holds just this is left alone. Return the path."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return path
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return path


def place_copy(source: Path, path: Path) -> Path:
    """Copy a whole file or none, flushed; a file that holds just this is left alone. Return the path."""
    if path.is_file() and filecmp.cmp(source, path, shallow=False):
        return path
    with whole_file(path) as partial:
        shutil.copyfile(source, partial)
    return path


def to_do(plan: Plan, home: Home) -> list[Call]:
    """The calls of a plan that would be made: no artifact of theirs is there, nor of what they are made for."""
    needed: list[Call] = []

    def visit(call: Call) -> None:
        if call not in needed and home.store.find(call.key) is None:
            needed.append(call)
            for parent in call.parents.values():
                visit(parent)

    for export in plan.exports:
        visit(export)
    return needed


def planned(plan: Plan) -> tuple[PlannedCall, ...]:
    """The plan as the run's record keeps it."""
    return tuple(
        PlannedCall(
            stage=call.stage.name,
            version=call.stage.version,
            level=call.level,
            key=call.key,
            params=call.stage.params(),
            parents={role: parent.key for role, parent in call.parents.items()},
        )
        for call in plan.calls
    )


def _open(job: Job, runs: Runs) -> RunRecord:
    attempt = Attempt(started=datetime.now(UTC), host=socket.gethostname(), process=os.getpid())
    try:
        found = runs.load(job.run)
        record = found.revised(state="running", error=None, attempts=(*found.attempts[-99:], attempt))
    except RunNotFoundError:
        record = RunRecord(
            run=job.run,
            spec=job.spec.model_dump(mode="json"),
            plan=planned(job.plan),
            origin=job.origin,
            origin_stage=job.origin_stage,
            attempts=(attempt,),
            created=datetime.now(UTC),
        )
    runs.save(record)
    return record


def _close(runs: Runs, record: RunRecord, state: str, error: str | None, outputs: tuple[Path, ...] = ()) -> None:
    last = record.attempts[-1].revised(finished=datetime.now(UTC), state=state, error=error)
    kept = tuple(str(path) for path in outputs) or record.outputs
    runs.save(record.revised(state=state, error=error, outputs=kept, attempts=(*record.attempts[:-1], last)))
