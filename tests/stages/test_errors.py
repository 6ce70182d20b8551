"""The words of errors: the nearest name that would work."""

from __future__ import annotations

import pytest

from freescale import SOLVERS
from stages.errors import LISTED, nearest, not_one_of


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
    assert nearest("cfg", ["guidance_scale", "crf"], {"cfg": "guidance_scale"}) == "guidance_scale"
    assert nearest("crf", ["guidance_scale", "crf"], {"crf": "guidance_scale"}) == "crf"


def test_few_names_are_listed_and_many_are_not() -> None:
    assert not_one_of("webm", ["png", "webp"]) == "'webm' is not one of png, webp; the nearest is 'webp'"
    many = [f"name-{number}" for number in range(LISTED + 1)]
    assert not_one_of("nam-3", many, listed_by="freescale runs") == (
        f"'nam-3' is not one of the {LISTED + 1} that `freescale runs` lists; the nearest is 'name-3'"
    )
    assert not_one_of("x", []) == "'x' does not exist"
