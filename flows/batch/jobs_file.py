"""Jobs files: many renders written down, checked whole before the first one starts.

A job is a spec with a `name` and a `priority` (the larger goes first). They are written as a YAML or JSON list, as
JSON Lines, as CSV with a header (`method.detail_scale` reaches into a field), as plain text with a prompt a line,
or as a mapping of `defaults`, `jobs` and `grid`, where a grid is a list for each field and stands for every
combination. A folder stands for all files in it. Two jobs of one spec are one render.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from flows.rendering.session import prepare
from stages.errors import SpecError
from stages.spec import make_spec, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flows.home import Home
    from flows.rendering.session import Job
    from stages.models.load import ModelInfo
    from stages.spec import ModelSpec

MAX_BYTES, MAX_JOBS = 64 * 2**20, 100_000
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,120}")
Entry = tuple[int, dict[str, Any]]  # line, fields


@dataclass(frozen=True)
class Problem:
    """A job that cannot be: where it is written, and one sentence."""

    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


@dataclass(frozen=True)
class Ordered:
    """A checked job in the order of the night."""

    name: str
    priority: int
    where: str
    job: Job


@dataclass(frozen=True)
class Orders:
    """What a jobs file asks for: each render once, the most urgent first, and what is wrong with it."""

    jobs: tuple[Ordered, ...]
    problems: tuple[Problem, ...]
    repeated: int  # jobs left out because another one has the same spec


def read_jobs(path: Path, home: Home, defaults: dict[str, Any] | None = None) -> Orders:
    """Read and check a jobs file or a folder of them; nothing is loaded or written.

    `defaults` are fields for every job that does not name them. Pictures and masks are looked for in the folder of
    the file and must lie in it. Raises `SpecError` where nothing can be read at all; what is wrong with single jobs
    is in `problems`.
    """
    problems: list[Problem] = []
    jobs: dict[str, Ordered] = {}
    names: dict[str, str] = {}
    models: dict[ModelSpec, ModelInfo] = {}
    repeated = 0
    for file in _files(path):
        for line, fields in _entries(file, problems):
            where = f"{file.name}:{line}"
            try:
                found = _ordered({**(defaults or {}), **fields}, where, file.parent, home, models)
                if names.setdefault(found.name, found.job.run) != found.job.run:
                    raise SpecError(f"name: {found.name!r} is another job's; names must differ")
            except SpecError as error:
                problems.append(Problem(where, str(error)))
                continue
            known = jobs.get(found.job.run)
            repeated += known is not None
            if known is None or found.priority > known.priority:
                jobs[found.job.run] = found
    if not jobs and not problems:
        raise SpecError(f"jobs: {path} holds no job")
    if len(jobs) > MAX_JOBS:
        raise SpecError(f"jobs: {path} holds {len(jobs)} jobs, allowed: {MAX_JOBS}")
    return Orders(tuple(sorted(jobs.values(), key=lambda found: -found.priority)), tuple(problems), repeated)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in READERS and p.is_file() and not p.name.startswith("."))
        if not files:
            raise SpecError(f"jobs: no file in {path} ends in {', '.join(READERS)}")
        return files
    if not path.is_file():
        raise SpecError(f"jobs: {path} does not exist")
    if path.suffix not in READERS:
        raise SpecError(f"jobs: {path.name!r} does not end in {', '.join(READERS)}")
    return [path]


def _entries(file: Path, problems: list[Problem]) -> Iterator[Entry]:
    """The jobs written in one file, with their lines; a file that cannot be read at all is one problem."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(f"larger than {MAX_BYTES // 2**20} MiB")
        yield from READERS[file.suffix](file.read_text(encoding="utf-8-sig"), file.name, problems)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error, SpecError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file.name}:{mark.line + 1}" if mark else file.name
        problems.append(Problem(where, f"cannot be read: {str(error).splitlines()[0]}"))


def _ordered(
    fields: dict[str, Any], where: str, folder: Path, home: Home, models: dict[ModelSpec, ModelInfo]
) -> Ordered:
    """Check one job. Raises `SpecError`."""
    fields = dict(fields)
    name, priority, size = (fields.pop(key, None) for key in ("name", "priority", "size"))
    if size is not None:
        fields["width"], fields["height"] = parse_size(str(size))
    if isinstance(fields.get("method"), str):
        fields["method"] = {"name": fields["method"]}
    if isinstance(fields.get("model"), str):
        fields["model"] = {"name": fields["model"]}
    if isinstance(fields.get("method"), dict):
        fields["method"] = {"name": "freescale", **fields["method"]}
    if priority is not None and (not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1000):
        raise SpecError(f"priority: {priority!r} is not a whole number from -1000 to 1000")
    if name is not None and (not isinstance(name, str) or not NAME.fullmatch(name)):
        raise SpecError(f"name: {name!r} is not 1 to 121 of a-z, 0-9, '.', '_' and '-', starting with one of the first")
    job = prepare(make_spec(fields), home, folder, known=models)
    return Ordered(name or job.run, priority or 0, where, job)


# ---------------------------------------------------------------- one reader a format


def _prompts(text: str, file: str, problems: list[Problem]) -> Iterator[Entry]:
    for line, words in enumerate(text.splitlines(), 1):
        if words.strip() and not words.lstrip().startswith("#"):
            yield line, {"prompt": words.strip()}


def _json_lines(text: str, file: str, problems: list[Problem]) -> Iterator[Entry]:
    for line, words in enumerate(text.splitlines(), 1):
        if not words.strip():
            continue
        try:
            fields = json.loads(words)
        except ValueError as error:
            problems.append(Problem(f"{file}:{line}", f"not JSON: {error}"))
            continue
        if isinstance(fields, dict):
            yield line, fields
        else:
            problems.append(Problem(f"{file}:{line}", "not a mapping of field names to values"))


def _table(text: str, file: str, problems: list[Problem]) -> Iterator[Entry]:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    if "prompt" not in (rows.fieldnames or ()):
        raise SpecError("the first line names no column `prompt`")
    for row in rows:
        if row.get(None) is not None:
            problems.append(Problem(f"{file}:{rows.line_num}", "more cells than the first line has columns"))
            continue
        fields: dict[str, Any] = {}
        for column, cell in row.items():
            if cell is None or cell.strip() == "":
                continue
            outer, _, inner = column.partition(".")
            value = cell if column in ("prompt", "negative_prompt", "name", "image") else yaml.safe_load(cell)
            if inner:
                fields.setdefault(outer, {})[inner] = value
            else:
                fields[column] = value
        yield rows.line_num, fields


def _document(text: str, file: str, problems: list[Problem]) -> Iterator[Entry]:
    """A list of jobs, one spec, or `defaults`, `jobs` and `grid`; JSON is YAML."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        raise SpecError("neither a list of jobs nor a mapping of `defaults`, `jobs` and `grid`: it is empty")
    values = yaml.safe_load(text)
    if isinstance(values, dict) and "prompt" in values:
        yield 1, values
        return
    if isinstance(values, list):
        yield from _items(root, values, {}, file, problems)
        return
    if not isinstance(values, dict) or set(values) - {"defaults", "jobs", "grid"}:
        raise SpecError("neither a list of jobs nor a mapping of `defaults`, `jobs` and `grid`")
    defaults = values.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise SpecError("`defaults` is not a mapping of field names to values")
    nodes = {key.value: node for key, node in root.value}
    if "jobs" in values:
        if not isinstance(values["jobs"], list):
            raise SpecError("`jobs` is not a list")
        yield from _items(nodes["jobs"], values["jobs"], defaults, file, problems)
    if "grid" in values:
        line = nodes["grid"].start_mark.line + 1
        yield from ((line, {**defaults, **combination}) for combination in _grid(values["grid"]))


def _items(
    node: yaml.Node, values: list[Any], defaults: dict[str, Any], file: str, problems: list[Problem]
) -> Iterator[Entry]:
    for item, fields in zip(node.value, values, strict=True):
        line = item.start_mark.line + 1
        if isinstance(fields, str):
            fields = {"prompt": fields}
        if isinstance(fields, dict):
            yield line, {**defaults, **fields}
        else:
            problems.append(Problem(f"{file}:{line}", f"{fields!r} is neither a prompt nor a mapping"))


def _grid(grid: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise SpecError("`grid` is not a mapping of field names to lists of values")
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


READERS: dict[str, Callable[[str, str, list[Problem]], Iterator[Entry]]] = {
    ".yaml": _document,
    ".yml": _document,
    ".json": _document,
    ".jsonl": _json_lines,
    ".csv": _table,
    ".txt": _prompts,
}
