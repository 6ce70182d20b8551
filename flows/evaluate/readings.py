"""Render, read and score what `flows/evaluate/layout.py` laid out.

Each picture is a render of its own, and each reading a stage in the store. So an evaluation that was stopped goes on
where it was, and one that is done is scored again without a new render.
"""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from flows.cluster.pool import WorkersDiedError, result_of
from flows.cluster.worker import stop_on_file, worker_session
from flows.evaluate.layout import REFERENCE, Evaluation, Picture, Size
from flows.rendering.costs import Cost, cost
from flows.rendering.job import prepare
from flows.rendering.stop import StopEvent
from stages.errors import StageError
from stages.metrics.clip_score import clip_score
from stages.metrics.detail import WORDS as DETAIL_WORDS
from stages.metrics.score import COMPARED, Sample, Score, scores
from stages.metrics.video_readings import VIDEO_WORDS
from stages.runner import Interrupted
from stages.spec import make_spec
from stages.stage import Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from flows.cluster.pool import WorkerPool
    from flows.home import Home
    from flows.rendering.session import Session
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from storage import ArtifactStore

PURPOSE = "evaluation"  # of the runs that are made here


def unread(picture: Picture, store: ArtifactStore, held: Collection[str] = ()) -> bool:
    """Whether a reading of `picture` is missing: its key is neither in `store` nor among the keys `held` elsewhere."""
    keys = (call.key for call in picture.readings.values())
    return any(key not in held and store.find(key) is None for key in keys)


@dataclass(frozen=True)
class Read:
    """A picture that was read. `cost` is that of rendering it; None where a stage was interrupted or was deleted."""

    picture: Picture
    tensors: Tensors
    cost: Cost | None


@dataclass
class Readings:
    """All that was read, and the pictures that failed, with the reason."""

    read: list[Read] = field(default_factory=list)
    failed: dict[Picture, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One method at one size: its scores, the pictures that failed, and what rendering one from the start costs."""

    method: str
    size: Size
    scores: tuple[Score, ...]
    failed: int
    seconds: float | None  # mean over `timed` pictures
    unet_samples: float | None  # mean over `timed` pictures
    timed: int


def read_all(
    evaluation: Evaluation,
    session: Session,
    read_one: Callable[[Picture, Evaluation, Session], Read] | None = None,
    told: Callable[[int, Picture], None] = lambda done, picture: None,
    pool: WorkerPool | None = None,
) -> Readings:
    """Render and read every picture that is not read yet; return all readings. `told` is called after each picture.

    `read_one` is `read_picture`, or a Prefect task around it. With a `pool` its workers render and read, and the
    results are taken from the store. Raises `Interrupted` when asked to stop.
    """
    found = Readings()
    lost = {} if pool is None else _read_over(evaluation, session, pool, told)
    for done, picture in enumerate(evaluation.pictures, start=1):
        if picture in lost:
            found.failed[picture] = lost[picture]
            continue
        if session.stop.is_set():
            raise Interrupted(None, None)
        try:
            found.read.append((read_one or read_picture)(picture, evaluation, session))
        except StageError as error:  # another try would fail too; the other pictures are scored without it
            found.failed[picture] = str(error)
        if pool is None:
            told(done, picture)
    return found


def _read_over(
    evaluation: Evaluation, session: Session, pool: WorkerPool, told: Callable[[int, Picture], None]
) -> dict[Picture, str]:
    """Have workers render and read what is not read yet; return the pictures that failed, and why."""
    home, pictures = session.home, evaluation.pictures
    left = [picture for picture in pictures if unread(picture, home.store)]
    model = next(p.job for p in pictures if p.job is not None)
    stop_file = home.root / "cache" / f"stop-{uuid.uuid4().hex}"
    how = (home, session.options.model_dump(), model.plan.info, model.spec.model.dtype, stop_file)
    specs = (None if p.job is None else p.job.spec.model_dump(mode="json") for p in left)
    tasks = ((*how, spec, tuple(p.readings.values())) for spec, p in zip(specs, left, strict=True))
    failed, done, broken = dict[Picture, str](), len(pictures) - len(left), list[Exception]()
    try:
        for number, future in pool.as_completed(read_elsewhere, tasks, stop_file):
            done += 1
            try:
                result_of(future)
            except (StageError, WorkersDiedError) as error:
                failed[left[number]] = str(error)
            except Exception as error:  # the cause is not this picture: stop the others with checkpoints first
                broken.append(error)
                pool.stop.set()
            told(done, left[number])
    except Interrupted:
        if broken:
            raise broken[0] from None
        raise
    finally:
        stop_file.unlink(missing_ok=True)
    return failed


def read_elsewhere(
    home: Home, options: dict[str, Any], info: ModelInfo, dtype: str, stop_file: Path,
    spec: dict[str, Any] | None, readings: tuple[Call, ...],
) -> None:  # fmt: skip
    """In a worker: render a picture, from its last checkpoint, and read it. Stop once the file `stop_file` exists."""
    session = worker_session(home, options)
    session.stop = StopEvent()
    with stop_on_file(stop_file, session.stop), suppress(Interrupted):
        if spec is not None:
            session.render(prepare(make_spec(spec), home), made_for=PURPOSE)
        runner = session.runner_for(info, dtype)
        for call in readings:
            runner.ensure(call, {})


def read_picture(picture: Picture, evaluation: Evaluation, session: Session) -> Read:
    """The readings of one picture: from the store where they are there, else made now."""
    store = session.home.store
    if picture.job is not None and unread(picture, store):
        session.render(picture.job, made_for=PURPOSE)
    runner = session.runner(next(p.job for p in evaluation.pictures if p.job is not None))
    tensors: Tensors = {}
    for role, call in picture.readings.items():
        found = runner.read(call, {})
        tensors |= {"clip": found["features"]} if role == "clip" else found
    return Read(picture, tensors, None if picture.job is None else cost(store, picture.job.plan))


def cells(evaluation: Evaluation, readings: Readings) -> Iterator[Cell]:
    """The scores of every method at every size, in the spec's order. Raises `StageError` where too few are left."""
    groups: dict[tuple[str, Size], list[Read]] = {}
    for read in readings.read:
        whole = read.picture.group == REFERENCE and evaluation.spec.reference.protocol == "real"
        groups.setdefault((read.picture.group, (0, 0) if whole else read.picture.size), []).append(read)
    failed = Counter((picture.group, picture.size) for picture in readings.failed)
    compared = bool(set(COMPARED) & set(evaluation.spec.measured))
    for width, height in evaluation.spec.sizes:
        size = (height, width)
        reference = None
        if compared:
            reference = _sample(evaluation, (REFERENCE, evaluation.against[size] or (0, 0)), groups)
        for entry in evaluation.spec.methods:
            found = scores(evaluation.spec, _sample(evaluation, (entry.label, size), groups), reference)
            costs = [read.cost for read in groups[entry.label, size] if read.cost is not None]
            seconds = sum(c.seconds for c in costs) / len(costs) if costs else None
            samples = sum(c.unet_samples for c in costs) / len(costs) if costs else None
            yield Cell(entry.label, size, tuple(found), failed[entry.label, size], seconds, samples, len(costs))


def _sample(evaluation: Evaluation, group: tuple[str, Size], groups: dict[tuple[str, Size], list[Read]]) -> Sample:
    reads = groups.get(group, [])
    if len(reads) < 2:
        raise StageError(f"{group[0]}: {len(reads)} pictures are left that could be made, too few to measure")

    def rows(name: str) -> torch.Tensor:
        """The tensors of this name, one below the other; (0, 0) where there are none."""
        found = [read.tensors[name] for read in reads if name in read.tensors]
        return torch.cat(found) if found else torch.empty(0, 0)

    crops = [len(read.tensors.get("crops", ())) for read in reads]
    clip = torch.empty(0)
    if evaluation.texts and group[0] != REFERENCE:
        clip = clip_score(rows("clip"), torch.cat([evaluation.texts[read.picture.prompt] for read in reads]))
    videos = dict(zip(VIDEO_WORDS, rows("clip_verdict").reshape(-1, len(VIDEO_WORDS)).T, strict=True))
    single = {name: rows(name) for name in ("flicker", "aesthetic", "dynamic_degree")}
    return Sample(
        count=len(reads),
        features=rows("features"),
        logits=rows("logits"),
        crops=rows("crops"),
        owner=torch.repeat_interleave(torch.arange(len(reads)), torch.tensor(crops)),
        clip=clip,
        verdicts=rows("verdict").reshape(-1, 4),
        detail=rows("detail").reshape(-1, len(DETAIL_WORDS)),
        texture=rows("texture").reshape(-1, 3),
        seams=rows("seams").flatten(),
        videos={name: values for name, values in (videos | single).items() if len(values)},
    )
