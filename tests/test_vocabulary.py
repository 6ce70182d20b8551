"""One word for one thing: names that were given up do not come back into the code, its messages or its docstrings.

Stored names stay as they were written: they are strings without a blank, which no rule here looks at.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "freescale", "stages", "storage")
Rule = Callable[[Path], Iterator[str]]
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

GIVEN_UP = {  # a name in the code: the word that took its place
    "Crew": "WorkerPool",
    "crew": "pool",
    "Fleet": "ClusterBatch",
    "fleet": "batch",
    "Spread": "Fanout",
    "hands": "executor",
    "Night": "Batch",
    "night": "batch",
    "Orders": "Jobs",
    "orders": "jobs",
    "Ordered": "QueuedJob",
    "Place": "Backend",
    "place": "backend, or a plain word",
    "aside": "not_in_key, set_aside or trash",
    "heir": "successor",
    "DEAF": "a constant that says what it does",
    "HERE": "a constant that says what it is",
    "PATIENCE": "a constant with its unit",
    "POLL": "POLL_SECONDS",
    "rung": "saving",
    "next_rung": "next_saving",
    "measures": "metrics, or savings",
    "clips": "videos",
}
CLIP = re.compile(r"clip|CLIP|Clip")  # the network of OpenAI, a value clipped to a range: never moving pictures
CLIP_NAMES = re.compile(
    r"_?(OPEN_)?CLIP.*|.*Clip(Networks|Extractor)|OpenCLIP|load_clip|_open_clip|clip"
    r"|clip_(score|pixels|path|folder|grad_norm_|tokenizer|vocabulary|skip)"
)
PHRASES = ("come what may", "what is at hand", "were at hand", "likewise")


def at(path: Path, line: int) -> str:
    """Where something was found."""
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}"


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Every identifier of a file, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Every comment and every string with a blank in it (docstrings, messages), with its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def given_up(path: Path) -> Iterator[str]:
    """The names of a file that were given up."""
    for line, name in names(path):
        if name in GIVEN_UP:
            yield f"{at(path, line)} {name}: say {GIVEN_UP[name]}"
        elif CLIP.search(name) and not CLIP_NAMES.fullmatch(name) and "clipped" not in name:
            yield f"{at(path, line)} {name}: clip is the network CLIP; moving pictures are a video"


def unclear(path: Path) -> Iterator[str]:
    """The prose of a file that was given up: old words, and docstrings that lean on the one before."""
    for line, text in prose(path):
        for phrase in PHRASES:
            if phrase in text.lower():
                yield f"{at(path, line)} {phrase!r}"
        if re.search(r"(?<!weights\.)\b[Cc]lips?\b(?! score| skip|\.path)", text):
            yield f"{at(path, line)} clip: moving pictures are a video"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            said = ast.get_docstring(node) or ""
            if said.startswith(("The same", "Likewise")):
                yield f"{at(path, node.lineno)} {node.name}: {said.split('.')[0]!r} says nothing by itself"


@pytest.mark.parametrize("rule", [given_up, unclear])
def test_the_code_keeps_to_its_words(rule: Rule) -> None:
    assert [found for path in SOURCES for found in rule(path)] == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("crew = 3", given_up),
        ("def f(night): ...", given_up),
        ("class ExportClip: ...", given_up),
        ("clip_unet = 1", given_up),
        ("raise ValueError('no such clip here')", unclear),
        ("x = 1  # whole, come what may", unclear),
        ('def f():\n    """The same for videos."""', unclear),
    ],
)
def test_a_rule_sees(source: str, rule: Rule, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(source, encoding="utf-8")
    assert list(rule(file))


def test_names_of_the_network_clip_are_fine() -> None:
    for name in ("CLIPTextModel", "clip_score", "clip_skip", "load_clip", "clipped", "CLIP"):
        assert CLIP_NAMES.fullmatch(name) or "clipped" in name
