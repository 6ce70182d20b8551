"""Render, read and score what `flows/evaluate/layout.py` laid out.

Each picture is a render of its own and each reading a stage in the store: an evaluation that was stopped anywhere goes
on where it was, and one that is done is scored again without a step.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from flows.cluster.batch import heeding, session_of
from flows.cluster.pool import WorkersDiedError, result_of
from flows.evaluate.layout import REFERENCE, Evaluation, Picture, Size
from flows.rendering.costs import Cost, cost
from flows.rendering.session import prepare
from stages.errors import StageError
from stages.metrics.clip_score import clip_score
from stages.metrics.score import DISTANCES, Sample, Score, scores
from stages.metrics.video_readings import VIDEO_WORDS
from stages.runner import Interrupted
from stages.spec import make_spec
from stages.stage import Tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from flows.cluster.pool import Crew
    from flows.home import Home
    from flows.rendering.session import Session
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from storage import ArtifactStore


def unread(picture: Picture, store: ArtifactStore, held: Collection[str] = ()) -> bool:
    """Whether a reading of `picture` is neither in `store` nor among those `held` elsewhere, by fingerprint."""
    keys = (call.key for call in picture.readings.values())
    return any(key not in held and store.find(key) is None for key in keys)


@dataclass(frozen=True)
class Read:
    """A picture that was read, with what rendering it cost; None where a stage was interrupted or is gone."""

    picture: Picture
    tensors: Tensors
    cost: Cost | None


@dataclass
class Readings:
    """All that was read, and the pictures that cannot be right, with the reason."""

    read: list[Read] = field(default_factory=list)
    failed: dict[Picture, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One method at one size: its scores, the pictures that failed, and what one costs to render, from scratch."""

    method: str
    size: Size
    scores: tuple[Score, ...]
    failed: int
    seconds: float | None  # mean over `timed` pictures
    unet_samples: float | None  # likewise
    timed: int


def read_all(
    evaluation: Evaluation,
    session: Session,
    read_one: Callable[[Picture, Evaluation, Session], Read] | None = None,
    told: Callable[[int, Picture], None] = lambda done, picture: None,
    crew: Crew | None = None,
) -> Readings:
    """Render and read every picture that is not read yet, telling of each. Raises `Interrupted` when asked to stop.

    `read_one` is `read_picture`, or that inside a task. With a `crew` its workers render and read, and what they found
    is taken from the store.
    """
    found = Readings()
    lost = {} if crew is None else _read_over(evaluation, session, crew, told)
    for done, picture in enumerate(evaluation.pictures, start=1):
        if picture in lost:
            found.failed[picture] = lost[picture]
            continue
        if session.stop.is_set():
            raise Interrupted(None, None)
        try:
            found.read.append((read_one or read_picture)(picture, evaluation, session))
        except StageError as error:  # it would be so again: the others are measured without it
            found.failed[picture] = str(error)
        if crew is None:
            told(done, picture)
    return found


def _read_over(
    evaluation: Evaluation, session: Session, crew: Crew, told: Callable[[int, Picture], None]
) -> dict[Picture, str]:
    """Have a crew render and read what is not read yet; return the pictures that cannot be made, and why."""
    home, pictures = session.home, evaluation.pictures
    left = [picture for picture in pictures if unread(picture, home.store)]
    model = next(p.job for p in pictures if p.job is not None)
    sign = home.root / "cache" / f"stop-{uuid.uuid4().hex}"
    how = (home, session.options.model_dump(), model.plan.info, model.spec.model.dtype, sign)
    specs = (None if p.job is None else p.job.spec.model_dump(mode="json") for p in left)
    tasks = ((*how, spec, tuple(p.readings.values())) for spec, p in zip(specs, left, strict=True))
    failed, done, broken = dict[Picture, str](), len(pictures) - len(left), list[Exception]()
    try:
        for number, future in crew.each(read_elsewhere, tasks, sign):
            done += 1
            try:
                result_of(future)
            except (StageError, WorkersDiedError) as error:
                failed[left[number]] = str(error)
            except Exception as error:  # not this picture's alone: end the others in order first
                broken.append(error)
                crew.stop.set()
            told(done, left[number])
    except Interrupted:
        if broken:
            raise broken[0] from None
        raise
    finally:
        sign.unlink(missing_ok=True)
    return failed


def read_elsewhere(
    home: Home, options: dict[str, Any], info: ModelInfo, dtype: str, sign: Path,
    spec: dict[str, Any] | None, readings: tuple[Call, ...],
) -> None:  # fmt: skip
    """In a worker: render a picture, from its last checkpoint, and read it; stop where the file `sign` says so."""
    session = session_of(home, options)
    session.stop = threading.Event()
    with heeding(sign, session.stop), suppress(Interrupted):
        if spec is not None:
            session.render(prepare(make_spec(spec), home))
        runner = session.runner_for(info, dtype)
        for call in readings:
            runner.ensure(call, {})


def read_picture(picture: Picture, evaluation: Evaluation, session: Session) -> Read:
    """One picture's readings, from the store where they are there."""
    store = session.home.store
    if picture.job is not None and unread(picture, store):
        session.render(picture.job)
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
    compared = bool(set(DISTANCES) & set(evaluation.spec.measured))
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
        videos={name: values for name, values in (videos | single).items() if len(values)},
    )
