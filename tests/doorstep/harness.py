"""A table of what people type: one case is an input, the exit code, and what the message must name.

Each case runs `freescale` in a process of its own, forked from one that has all imported, in an empty folder.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.processes import freescale

File = str | bytes | Callable[[Path], object]
"""Text (UTF-8), bytes, or a function that makes the file at the path it is given."""


@dataclass(frozen=True)
class Case:
    """One line of a table.

    `words`: the command line without `freescale`, as a shell would split it; `{folder}` is the case's folder.
    `says`: texts that standard error or standard output must hold. `silent_on`: texts that neither may hold.
    `code`: 2 is bad input, refused before any work. `files` lie in the case's folder, which is the working directory.
    `env`: environment variables to set; None takes one away. `makes`: files that must be there afterwards.
    `lines`: of a refusal on standard error; a batch has one for each problem, and their number.
    """

    name: str
    words: str
    says: tuple[str, ...] = ()
    code: int = 2
    files: Mapping[str, File] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    silent_on: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    lines: int = 1


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


TRACED = bytearray()
"""What the plans of earlier cases traced: a case that goes well begins with it, as in a home that is in use."""

NEVER = ("Traceback", "<_io.", " object at 0x", "codec can't", "validation error for")
"""Texts of Python and its libraries that no person may see."""


LONG = 10
"""Cases that make a table a long one."""

SPENT: list[float] = []
"""Seconds of a core that each case took."""


def table(*cases: Case) -> Any:
    """Return the decorator that runs a test once a case, as its argument `case`.

    Of a long table every second case runs with the thorough tests only.
    """
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    thorough = set(range(1, len(cases), 2)) if len(cases) >= LONG else set()
    marks = [pytest.mark.thorough if i in thorough else () for i in range(len(cases))]
    return pytest.mark.parametrize(
        "case", [pytest.param(c, id=n, marks=m) for c, n, m in zip(cases, names, marks, strict=True)]
    )


def check(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run a case in `folder`, which is empty, and assert all that it says; return what the command said."""
    prepare(case, folder, monkeypatch)
    traces = folder / "home" / "cache" / "traces.json"
    if case.code == 0 and TRACED and not traces.exists():
        traces.parent.mkdir(parents=True, exist_ok=True)
        traces.write_bytes(TRACED)
    said = call(folder, case.words.replace("{folder}", str(folder)))
    if traces.exists():
        TRACED[:] = traces.read_bytes()
    both = said.out + said.err
    assert said.code == case.code, f"exit {said.code}, not {case.code}: {both}"
    for text in case.says:
        assert text in both, f"{text!r} is not in: {both}"
    for text in (*NEVER, *case.silent_on):
        assert text not in both, f"{text!r} is in: {both}"
    for name in case.makes:
        assert (folder / name).exists(), f"{name} was not made"
    if case.code == 2:
        refused(said, folder, case.lines)
    return said


def prepare(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files and the environment of a case; its home is `home` in its folder."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FREESCALE_HOME", str(folder / "home"))
    for name, value in case.env.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.replace("{folder}", str(folder)))


def call(folder: Path, words: str) -> Said:
    """Run `freescale words` to its end in this working directory and environment; 120 s at most."""
    told = folder / ".said"
    process = freescale(told, *shlex.split(words))
    process.join(120)
    assert process.exitcode is not None, "it goes on after 120 s"
    out, err = (Path(f"{told}.{name}").read_text("utf-8", "replace") for name in ("out", "err"))
    SPENT.append(float(Path(f"{told}.cpu").read_text()))
    for name in ("out", "err", "cpu"):
        os.unlink(f"{told}.{name}")
    return Said(process.exitcode, out, err)


def refused(said: Said, folder: Path, count: int = 1) -> None:
    """Assert that a refusal is so many sentences on standard error, and that nothing was begun."""
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == count, f"a refusal is {count} line(s): {said.err}"
    assert re.search(r"\w", lines[0])
    assert not (folder / "home" / "runs").exists() or not any((folder / "home" / "runs").iterdir()), "a run was begun"
