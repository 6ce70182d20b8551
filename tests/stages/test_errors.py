"""The words of errors: the nearest name that would work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from freescale import SOLVERS
from stages.errors import LISTED, cause, nearest, nearest_size, not_one_of

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("eulr", "euler"),
        ("EULER", "euler"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("euler ancestral", "euler_ancestral"),
        ("dpm", "dpmpp_2m"),
        ("", None),
        ("quadratic", None),
        (5, None),
    ],
)
def test_the_nearest_solver(given: object, found: str | None) -> None:
    assert nearest(given, SOLVERS) == found


def test_a_word_that_people_use_stands_for_a_name() -> None:
    assert nearest("cfg", ["guidance_scale", "crf"]) == "guidance_scale"
    assert nearest("--CFG-Scale", ["--guidance-scale", "--crf"]) == "--guidance-scale"
    assert nearest("fp16", ["float32", "float16"]) == "float16"
    assert nearest("fp16", ["size", "dtype"]) == "dtype"
    assert nearest("Vienna", ["Europe/Vienna", "UTC"], {"Vienna": "Europe/Vienna"}) == "Europe/Vienna"


def test_few_names_are_listed_and_many_are_not() -> None:
    assert not_one_of("webm", ["png", "webp"]) == "'webm' is not one of png, webp; the nearest is 'webp'"
    many = [f"name-{number}" for number in range(LISTED + 1)]
    assert not_one_of("nam-3", many, listed_by="freescale runs") == (
        f"'nam-3' is not one of the {LISTED + 1} that `freescale runs` lists; the nearest is 'name-3'"
    )
    assert not_one_of("x", []) == "'x' does not exist"


def _fails(read: Callable[[], object]) -> str:
    try:
        read()
    except Exception as error:
        return cause(error)
    raise AssertionError("it was read")


def test_why_a_file_cannot_be_read_in_one_line_without_the_words_of_a_library() -> None:
    assert _fails(lambda: b"a\xff".decode()) == "it is not UTF-8 text (byte 0xff at 1)"
    assert _fails(lambda: Path("/nowhere").read_text()) == "no such file or directory"
    assert (
        _fails(lambda: yaml.safe_load("a: 1\nb: [1, 2\nc: 3\n")) == "line 3, column 2: expected ',' or ']', but got ':'"
    )
    assert _fails(lambda: json.loads('{"a": 1,}')).startswith("line 1, column ")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512*512", (512, 512)),
        ("512", (512, 512)),
        ("512 x 512", (512, 512)),
        ("1920\u00d71080", (1920, 1080)),
        ("500x300px", (496, 304)),
        ("1k", (1024, 1024)),
        ("2.5K", (2560, 2560)),
        ("1080p", (1920, 1080)),
        ("16:9", (1024, 576)),
        ("0:0", (64, 64)),
        ("10", (64, 64)),
        ("999999", (16384, 16384)),
        ("large", None),
        ("1x2x3", None),
    ],
)
def test_the_size_that_was_probably_meant(text: str, size: tuple[int, int] | None) -> None:
    assert nearest_size(text, 8, 64, 16384) == size
