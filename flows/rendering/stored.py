"""A run from its record and the store alone: its model may be gone, and so may the pictures that it began from."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.rendering.export import StoredExport, deliver, put, target_path
from flows.rendering.job import load, prepare
from flows.rendering.session import Result
from stages.call import Call
from stages.errors import SpecError
from stages.export import Export
from stages.export_video import ExportVideo
from stages.media.picture import CheckedPicture, LoadPicture
from stages.models.load import describe
from stages.observer import Outcome
from stages.plan import Known, make_plan
from stages.settings import placed
from stages.spec import RenderSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.home import Home
    from flows.rendering.job import Job
    from stages.models.load import ModelInfo
    from storage import PlannedCall, RunRecord


@dataclass(frozen=True)
class StoredRun:
    """A done run whose files are all in the store."""

    run: str
    exports: tuple[StoredExport, ...]

    def result(self, home: Home, out: Path | None, overwrite: bool) -> Result:
        """Copy the files of all levels to the run's folder, and the last to `out`; return paths, hash and times.

        Raises `SpecError` where `out` is refused, and `DamagedArtifactError` for bytes that are not those stored.
        """
        began, last = time.monotonic(), self.exports[-1]
        target = target_path(out, self.run, last.call.stage, last.key, home, overwrite)
        levels = [
            deliver(one.call, home.outputs(self.run), partial(home.store.file_path, one.key)) for one in self.exports
        ]
        digest = bytes(home.store.read(last.key)["pixels_sha256"].numpy())
        fetch = partial(home.store.file_path, last.key)
        final = put(last.call, target, fetch, digest, overwrite) if target else None
        outputs = tuple(path for path in (final, *reversed(levels)) if path is not None)
        outcomes = tuple(Outcome(one.call, one.key, reused=True) for one in self.exports)
        return Result(self.run, outputs, digest.hex(), outcomes, time.monotonic() - began)


def exports_of(record: RunRecord) -> tuple[StoredExport, ...]:
    """The exports of a run, level by level, as its record has them. Raises `SpecError` for those of another version."""
    method = record.spec.get("method")
    name = str(method.get("name", "")) if isinstance(method, dict) else ""
    return tuple(_export(planned, record.run, name) for planned in record.plan if planned.stage == Export.name)


def _export(planned: PlannedCall, run: str, method: str) -> StoredExport:
    kinds: dict[int, type[Export | ExportVideo]] = {kind.key_version(): kind for kind in (Export, ExportVideo)}
    try:
        stage = replace(kinds[planned.version].from_params(planned.params), method=method)
        level = planned.level or 0
        height, width = json.loads(stage.provenance)["sizes"][level]
        return StoredExport(Call(stage, level, {}, "", (height, width)), planned.key, planned.parents["image"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise SpecError(f"run: {run} was written by another version of freescale; render its spec again") from None


def stored_run(home: Home, record: RunRecord) -> StoredRun | None:
    """The run of a record, where the store has the files of all its levels."""
    exports = exports_of(record)
    whole = exports and all(home.store.find(one.key) is not None for one in exports)
    return StoredRun(record.run, exports) if whole else None


def resumed(home: Home, run: str) -> Job | StoredRun:
    """What `run` has left to do as a job; where it is done and cannot be planned any more, its stored files.

    Raises `SpecError` for a name that is none, and for a run that is not done and cannot be planned as it was.
    """
    record, spec = load(home, run)
    run = record.run
    try:
        job = prepare(spec, home, None, record.origin, pictures=recorded_pictures(home, record, spec))
    except SpecError:
        if (stored := stored_run(home, record)) is not None:
            return stored
        raise
    if job.run != run and (stored := stored_run(home, record)) is not None:
        return stored
    if job.run != run and (was := _weights(record)) is not None and was != dict(job.plan.info.fingerprints):
        raise SpecError(
            f"run: {run} was begun with other files of the model {spec.model.name!r}; put those back, or render anew"
        )
    return job


def _weights(record: RunRecord) -> dict[str, str] | None:
    """The fingerprints of the model that a run was planned with."""
    exports = exports_of(record)
    stage = exports[-1].call.stage if exports else None
    return dict(json.loads(stage.provenance)["model"]) if isinstance(stage, Export | ExportVideo) else None


def redone(home: Home, origin: RunRecord, spec: RenderSpec) -> Job | StoredRun:
    """A redo as a job; where it cannot be planned and is done, its stored files. Raises `SpecError`."""
    _, before = load(home, origin.run)
    changed = {region.mask for region in spec.redo[-1].regions or ()}  # read as they are now
    try:
        known = recorded_pictures(home, origin, before)
        pictures = {named: checked for named, checked in known.items() if named[1] not in changed}
        return prepare(spec, home, None, origin.run, pictures=pictures)
    except SpecError:
        wanted = placed(spec, None).model_dump(mode="json")
        for record in home.runs.list():
            stored = stored_run(home, record) if record.origin == origin.run and _dumped(record) == wanted else None
            if stored is not None:
                return stored
        raise


def _dumped(record: RunRecord) -> dict[str, Any]:
    """The spec of a record in today's form."""
    return RenderSpec.model_validate(dict(record.spec)).model_dump(mode="json")


def recorded_pictures(home: Home, record: RunRecord, spec: RenderSpec) -> Known:
    """The pictures of a run by mode and path in its spec, as they were when it was planned; the files are not read.

    Raises `SpecError` where the spec cannot be planned.
    """
    paths = set(_paths(spec))
    if not paths:
        return {}
    info: ModelInfo = describe(spec.model, home.root)
    blanks = {(mode, path): CheckedPicture(Path(path), path) for path in paths for mode in ("RGB", "L")}
    calls = make_plan(spec, info, None, blanks).calls
    if len(calls) != len(record.plan):
        return {}
    found = {}
    for call, planned in zip(calls, record.plan, strict=True):
        if isinstance(call.stage, LoadPicture) and planned.stage == LoadPicture.name:
            converted = planned.version != LoadPicture.key_version()
            path = call.stage.path
            found[call.stage.mode, path] = CheckedPicture(Path(path), str(planned.params["digest"]), None, converted)
    return found


def _paths(spec: RenderSpec) -> Iterator[str]:
    """The pictures that a spec names."""
    if spec.image is not None:
        yield spec.image
    yield from (region.mask for region in spec.regions)
    for change in spec.redo:
        yield from (region.mask for region in change.regions or ())
