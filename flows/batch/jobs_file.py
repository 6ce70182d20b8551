"""Jobs files: many renders in a file, all checked before the first one starts.

A job is a spec with a `name` and a `priority` (the larger goes first). They are written as a YAML or JSON list, as
JSON Lines, as CSV with a header (`method.detail_scale` reaches into a field), as plain text with a prompt a line,
or as a mapping of `defaults`, `jobs` and `grid`, where a grid is a list for each field and stands for every
combination. A folder stands for all files in it. Two jobs of one spec are one render.

Every entry of a file becomes a job, a repetition of one, or a problem with its line.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.batch.entries import READERS, Entry, read_entries
from flows.rendering.fields import Origin, line_of, queue_fields, render_fields, with_sides
from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.spec import make_spec
from stages.textfiles.tables import Fault
from stages.textfiles.text import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flows.home import Home
    from flows.rendering.job import Job
    from stages.models.load import ModelInfo
    from stages.spec import ModelSpec

MAX_JOBS = 100_000
BESIDE = (  # what may lie beside jobs files: pictures that jobs name, and what a batch made
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
    *(".mp4", ".mkv", ".zip", ".html", ".md"),
    *(".part", ".tmp", ".bak"),  # a file on its way, or a copy of one
)


Seeds = dict[tuple[str, str, int], list[int]]
"""What was drawn for seeds of -1: by file, fields, and how many jobs before have the same fields."""


@dataclass(frozen=True)
class Problem:
    """A job that cannot be rendered: where it is written (`FILE:LINE`), and why, in one sentence."""

    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


@dataclass(frozen=True)
class QueuedJob:
    """A job of a batch: its name, its priority (the larger goes first) and where it is written."""

    name: str
    priority: int  # -1000 to 1000
    where: str
    job: Job
    drawn: tuple[int, ...] = ()  # seeds that were drawn, for each seed of -1


@dataclass(frozen=True)
class Jobs:
    """The jobs of a file: each render once, the highest priority first, and the problems of the others."""

    jobs: tuple[QueuedJob, ...]
    problems: tuple[Problem, ...]
    repeated: int  # jobs left out because another one has the same spec


def read_jobs(
    path: Path, home: Home, defaults: dict[str, Any] | None = None, root: Path | None = None, seeds: Seeds | None = None
) -> Jobs:
    """Read and check a jobs file or a folder of them; nothing is loaded or written.

    `defaults` are fields for every job that does not name them. Paths of pictures and masks are relative to the folder
    of the file, and must lie in it, or in `root`. `seeds` keeps what was drawn for seeds of -1: with it, a job that is
    read again is the same render. Raises `SpecError` where nothing can be read at all; what is wrong with single jobs
    is in `problems`.
    """
    found = _Reading(home, with_sides(defaults or {}), root, {} if seeds is None else seeds)
    for file in found.files(path):
        found.read(file)
    if not found.jobs and not found.problems:
        raise SpecError(f"jobs: {path} holds no job")
    if len(found.jobs) > MAX_JOBS:
        raise SpecError(f"jobs: {path} holds {len(found.jobs)} jobs, allowed: {MAX_JOBS}")
    jobs = sorted(found.jobs.values(), key=lambda queued: -queued.priority)
    return Jobs(tuple(jobs), tuple(found.problems), found.repeated)


@dataclass
class _Reading:
    """What was found so far. An entry ends as a job, as a repetition or as a problem."""

    home: Home
    defaults: dict[str, Any]
    root: Path | None
    seeds: Seeds
    times: Counter[tuple[str, str]] = field(default_factory=Counter)  # that these fields were read in this file
    jobs: dict[str, QueuedJob] = field(default_factory=dict)  # by run
    problems: list[Problem] = field(default_factory=list)
    repeated: int = 0
    names: dict[str, str] = field(default_factory=dict)  # of runs that were named, by name
    models: dict[ModelSpec, ModelInfo] = field(default_factory=dict)

    def files(self, path: Path) -> Iterator[Path]:
        """The jobs files at a path. Whatever else is in a folder, and is not known to be no jobs file, is a problem."""
        if not path.is_dir():
            if not path.is_file():
                raise SpecError(f"jobs: {path} does not exist")
            if path.suffix.lower() not in READERS:
                raise SpecError(f"jobs: {path.name!r} does not end in {', '.join(READERS)}")
            yield path
            return
        inside = sorted(found for found in path.iterdir() if not found.name.startswith("."))
        if not any(found.suffix.lower() in READERS for found in inside):
            raise SpecError(f"jobs: no file in {path} ends in {', '.join(READERS)}")
        for found in inside:
            if (says := _not_read(found)) is None:
                yield found
            elif says:
                self.problems.append(Problem(found.name, says))

    def read(self, file: Path) -> None:
        """Add the jobs and the problems of one file."""
        try:
            for entry in read_entries(file):
                if isinstance(entry, Fault):
                    self.problems.append(Problem(f"{file.name}:{entry.line}", entry.says))
                else:
                    self.add(entry, file)
        except UnreadableError as error:
            where = file.name if error.line is None else f"{file.name}:{error.line}"
            self.problems.append(Problem(where, str(error)))

    def add(self, entry: Entry, file: Path) -> None:
        """Check an entry, and add it as a job, a repetition or a problem."""
        try:
            found = self._queued_job(entry, file)
            if self.names.setdefault(found.name, found.job.run) != found.job.run:
                raise SpecError(f"name: {found.name!r} is another job's; names must differ")
            known = self.jobs.get(found.job.run)
            if known is not None and len({known.name, found.name} - {found.job.run}) > 1:
                raise SpecError(
                    f"name: {found.name!r} is the render {known.name!r} of {known.where}; one name is enough"
                )
        except SpecError as error:
            where = f"{file.name}:{line_of(error, entry.lines, entry.around)}"
            self.problems.append(Problem(where, str(error)))
            return
        self.repeated += known is not None
        if known is None or found.priority > known.priority:
            self.jobs[found.job.run] = found

    def _queued_job(self, entry: Entry, file: Path) -> QueuedJob:
        """Check one job. Raises `SpecError`."""
        fields = {**self.defaults, **with_sides(entry.defaults), **with_sides(entry.fields)}
        name, priority = queue_fields(fields)
        written = (str(file), repr(fields))
        self.times[written] += 1
        origin = Origin(
            file.parent, self.root or file.parent, file.name, self.seeds.setdefault((*written, self.times[written]), [])
        )
        job = prepare(make_spec(render_fields(fields, origin)), self.home, known=self.models)
        return QueuedJob(name or job.run, priority, f"{file.name}:{entry.lines.line}", job, tuple(origin.drawn))


def _not_read(path: Path) -> str | None:
    """Why a file in a folder of jobs files cannot be read; empty where it may lie there, None where it is read."""
    suffix = path.suffix.lower()
    if path.is_dir():
        inside = (each.suffix.lower() for each in path.iterdir())
        if suffix in READERS or any(suffix in READERS for suffix in inside):
            return "is a folder inside of a folder of jobs files; give it to a batch of its own"
        return ""
    if suffix in BESIDE or path.name.endswith("~") or path.name.lower() in ("thumbs.db", "desktop.ini"):
        return ""
    if suffix not in READERS:
        return f"does not end in {', '.join(READERS)}; move it out of the folder of jobs files"
    if not path.is_file():
        return "is a link to nothing" if path.is_symlink() and not path.exists() else "is not a file"
    return None if os.access(path, os.R_OK) else "cannot be read: Permission denied"
