"""Text files: every line of a table is in a row or in a fault, and values have the lines they are written in."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from stages.textfiles.documents import read_json, read_yaml, value_of
from stages.textfiles.tables import Fault, read_table
from stages.textfiles.text import UnreadableError, decoded

if TYPE_CHECKING:
    from stages.textfiles.values import Lines

CELL = st.text(st.sampled_from('ab1é"\n,; '), max_size=8)
ROUGH = st.text(st.sampled_from('ab1"",,\n\n; '), max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=4), inside, max_size=4),
    max_leaves=12,
)


@given(ROUGH)
@example('"b"x,2\nc,3')
@example('"b,2\nc,3\nd,4')
@example('"a\nb"x,3\n"c\nd",4')
def test_every_line_of_a_table_is_in_a_row_or_in_a_fault(body: str) -> None:
    lines = body.split("\n")
    found = list(read_table("prompt,seed\n" + body, "prompt"))
    starts = {each.line - 2 for each in found}
    covered: set[int] = set()
    for number, line in enumerate(lines):
        if number in starts or not line.replace(",", "").strip():
            covered.add(number)
        elif '"' in "".join(lines[: number + 1]):  # it goes on with a row that a quote keeps open
            opened = max((start for start in starts if start < number), default=None)
            assert opened is not None, (number, found)
            covered.add(number)
    assert covered == set(range(len(lines)))
    assert len(found) == len(starts), "two things begin in one line"


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=6))
def test_a_table_that_is_written_well_is_read_as_the_csv_module_reads_it(rows: list[list[str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([["prompt", "seed"], *rows])
    found = list(read_table(written.getvalue(), "prompt"))
    assert not any(isinstance(each, Fault) for each in found)
    expected = [{c: v for c, v in zip(("prompt", "seed"), row, strict=True) if v.strip()} for row in rows]
    assert [each.cells for each in found if not isinstance(each, Fault)] == [cells for cells in expected if cells]


@given(ROUGH, ROUGH)
def test_a_row_before_a_broken_one_is_read_in_any_case(before: str, after: str) -> None:
    first = next(iter(read_table(f"prompt,seed\ngood,1\n{before}\n{after}", "prompt")))
    assert first.line == 2
    assert not isinstance(first, Fault)


def line_at(text: str, value: Any, lines: Lines) -> None:
    """Assert that every key of a value is written in the line that it is said to be in."""
    written = text.split("\n")
    if isinstance(value, dict):
        for key, inside in value.items():
            below = lines.inside[key]
            assert json.dumps(key) in written[below.line - 1]
            line_at(text, inside, below)
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            line_at(text, inside, lines.inside[index])


@given(VALUES)
def test_json_has_the_values_and_the_lines_that_it_is_written_with(value: Any) -> None:
    text = json.dumps(value, indent=1)
    found, lines = read_json(text)
    assert found == value
    line_at(text, value, lines)


@given(VALUES)
def test_json_written_as_yaml_has_the_same_values_and_lines(value: Any) -> None:
    text = json.dumps(value, indent=1)
    found, lines = read_yaml(text)
    assert found == value or found == pytest.approx(value)
    line_at(text, value, lines)


@given(VALUES)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    assert read_yaml(yaml.safe_dump(value))[0] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0123", "0123"), ("12:30:45", "12:30:45"), ("no", "no"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000")),
        *(("12", 12), ("-3", -3), ("0x1F", 31), ("0o17", 15), ("1e5", 1e5), (".5", 0.5), ("true", True), ("~", None)),
        *(("none", None), ("[1, no]", [1, "no"]), ("{a: 0123}", {"a": "0123"}), ("a: b", "a: b"), ("x # y", "x # y")),
    ],
)
def test_a_cell_is_what_was_written(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


@given(st.binary(max_size=40))
def test_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    try:
        text = decoded(data)
    except UnreadableError:
        return
    assert "\0" not in text


@given(st.text(st.sampled_from("ab:-[]{}\"'\n\t #&*!%@|>?~,<"), max_size=30))
def test_yaml_is_read_or_refused_in_words(text: str) -> None:
    with suppress(UnreadableError):  # and raises nothing else
        read_yaml(text)


@pytest.mark.parametrize(("rows", "says"), [(6, ""), (40, "aliases"), (0, "inside of what it stands for")])
def test_aliases_that_stand_for_too_much_are_refused(rows: int, says: str) -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, rows))
    if not rows:
        text = "a: &a [*a]\n"
    if says:
        with pytest.raises(UnreadableError, match=says):
            read_yaml(text)
    else:
        assert read_yaml(text)[1].line_of("a5", 3, 4) == 4
