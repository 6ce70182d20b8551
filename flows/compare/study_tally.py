"""The count of a study: each method's share of the answers to every question, with intervals.

Voters and rows are both drawn anew for the intervals: answers of one voter, and answers on one row, hang together.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from freescale.forward_process import generator
from stages.errors import SpecError, cause, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DRAWS, LEVEL = 2000, 0.95
MAX_BYTES = 2**24
M = TypeVar("M", bound=BaseModel)


class Key(BaseModel):
    """`key.json` of a study: which method each number on the page stands for."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    study: str
    methods: tuple[str, ...] = Field(min_length=2)
    questions: dict[str, str]
    items: dict[str, tuple[str, ...]]


class Ballot(BaseModel):
    """What a voter saved: for every row the number of the picture chosen, question by question."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: str
    voter: str = Field(pattern=r"^[0-9a-f]{32}$")
    answers: dict[str, tuple[Annotated[int, Field(ge=0)], ...]]
    checksum: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing was changed since the page saved it."""
        said = [self.study, self.voter, *([item, list(given)] for item, given in self.answers.items())]
        text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
        return f"{zlib.crc32(text.encode()):08x}" == self.checksum


@dataclass(frozen=True)
class Share:
    """One method's share of the answers to one question, between 0 and 1."""

    question: str
    method: str
    value: float
    low: float
    high: float


def read_study(key: Path, ballots: Sequence[Path]) -> tuple[Key, list[Ballot]]:
    """Read and check all. Raises `SpecError` naming every ballot that is damaged, of another study, or a double."""
    study = _read(key, Key, "key")
    problems: list[str] = []
    voters: dict[str, Path] = {}
    found: list[Ballot] = []
    for path in ballots:
        try:
            ballot = _read(path, Ballot, "ballot")
            _check(ballot, study, path)
        except SpecError as error:
            problems.append(str(error))
            continue
        if ballot.voter in voters:
            problems.append(f"ballot: {path} is of the same voter as {voters[ballot.voter]}")
        voters.setdefault(ballot.voter, path)
        found.append(ballot)
    if problems:
        raise SpecError("; ".join(problems))
    return study, found


def _read(path: Path, kind: type[M], what: str) -> M:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{what}: {path} is larger than {MAX_BYTES >> 20} MiB")
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise SpecError(f"{what}: {path} is damaged: {sentence(error)}") from None
    except OSError as error:
        raise SpecError(f"{what}: {path} cannot be read: {cause(error)}") from None


def _check(ballot: Ballot, key: Key, path: Path) -> None:
    if ballot.study != key.study:
        raise SpecError(f"ballot: {path} is of study {ballot.study!r}, not {key.study!r}")
    if not ballot.is_whole:
        raise SpecError(f"ballot: {path} is damaged: its checksum is another")
    if set(ballot.answers) != set(key.items):
        raise SpecError(f"ballot: {path} is damaged: it does not answer just the study's {len(key.items)} rows")
    for item, given in ballot.answers.items():
        if len(given) != len(key.questions) or max(given) >= len(key.items[item]):
            raise SpecError(f"ballot: {path} is damaged: row {item} has {list(given)}")


def tally(key: Key, ballots: Sequence[Ballot], seed: int = 0) -> list[Share]:
    """Every method's share of every question, with the 95 % interval of draws over voters and rows."""
    rows = sorted(key.items)
    shares = []
    for number, question in enumerate(key.questions):
        chosen = [[key.items[row][ballot.answers[row][number]] for row in rows] for ballot in ballots]
        for method in key.methods:
            votes = torch.tensor([[float(name == method) for name in voter] for voter in chosen], dtype=torch.float64)
            low, high = _interval(votes, seed)
            shares.append(Share(question, method, float(votes.mean()), low, high))
    return shares


def _interval(votes: Tensor, seed: int) -> tuple[float, float]:
    """(voters, rows) of 0 and 1 -> where the mean lies, both axes drawn with replacement."""
    source = generator(seed, "study", "tally")
    voters, rows = votes.shape
    means = []
    for _ in range(DRAWS):
        some = torch.randint(0, voters, (voters,), generator=source)
        others = torch.randint(0, rows, (rows,), generator=source)
        means.append(votes[some][:, others].mean())
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.stack(means), tails).tolist()
    return low, high


def print_tally(key: Path, ballots: Sequence[Path], as_json: bool) -> None:
    """The table, or with `as_json` one object."""
    study, found = read_study(key, ballots)
    shares = tally(study, found)
    if as_json:
        record: dict[str, Any] = {"study": study.study, "ballots": len(found), "rows": len(study.items)}
        typer.echo(json.dumps(record | {"shares": [vars(share) for share in shares]}))
        return
    lines = [f"| method | {' | '.join(study.questions)} |", f"|{'---|' * (len(study.questions) + 1)}"]
    for method in study.methods:
        cells = [f"{100 * s.value:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in shares if s.method == method]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    rest = f"{len(found)} ballots over {len(study.items)} rows; brackets: 95 % of draws over voters and rows."
    typer.echo("\n".join([*lines, "", rest]))
