"""Keys are a promise: today's code plans every pinned spec under the keys of `plan_keys.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.golden import doors, make
from tests.golden.moved import ADVICE, differences, refusing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS, CALLS = make.pinned()
SPECS, EVALUATIONS, COMPARISONS = make.specs(), make.others("evaluations"), make.others("comparisons")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with models and nothing else; only a cache of hashes is written to it."""
    home = tmp_path_factory.mktemp("home")
    with make.models_linked(home):
        yield home


def told(name: str, what: str, lines: list[str]) -> None:
    if lines:
        pytest.fail("\n".join([f"{what} {name!r} has other keys than before:", *lines, ADVICE]), pytrace=False)


def same(name: str, what: str, then: dict[str, Any], title: str, calls: dict[str, Any]) -> None:
    lines = differences(make.calls_of(then["keys"], CALLS), calls)
    if then["name"] != title:
        lines.append(f"its name was {then['name']} and is {title}")
    told(name, what, lines)


def test_every_pinned_entry_is_tried_and_every_entry_is_pinned() -> None:
    for kind, given in (("specs", SPECS), ("evaluations", EVALUATIONS), ("comparisons", COMPARISONS)):
        assert list(KEYS[kind]) == list(given), f"{kind}: run `python -m tests.golden.make keys` for those that are new"
    assert {call["key"] for e in KEYS["specs"].values() for call in make.calls_of(e["keys"], CALLS).values()} <= set(
        CALLS
    )


@pytest.mark.parametrize("name", KEYS["specs"])
def test_a_spec_has_the_keys_it_had(name: str, home: Path) -> None:
    with refusing(f"spec {name!r} was valid and is refused"):
        run, calls = doors.plan_calls(SPECS[name], home, make.root_of(name))
    same(name, "spec", KEYS["specs"][name], run, calls)


@pytest.mark.parametrize("name", KEYS["evaluations"])
def test_an_evaluation_has_the_keys_it_had(name: str, home: Path) -> None:
    with refusing(f"evaluation {name!r} was valid and is refused"):
        title, calls = doors.evaluation_calls(EVALUATIONS[name], home)
    same(name, "evaluation", KEYS["evaluations"][name], title, calls)


@pytest.mark.parametrize("name", KEYS["comparisons"])
def test_a_comparison_has_the_runs_it_had(name: str, home: Path) -> None:
    then = KEYS["comparisons"][name]
    with refusing(f"comparison {name!r} was valid and is refused"):
        title, runs = doors.comparison_names(COMPARISONS[name], home)
    lines = [f"run {was} is now {now}" for was, now in zip(then["runs"], runs, strict=True) if was != now]
    told(name, "comparison", lines + ([f"its name was {then['name']} and is {title}"] if title != then["name"] else []))


def test_every_method_and_ablation_is_pinned() -> None:
    assert set(doors.METHOD_NAMES) <= set(SPECS), "add a spec to tests/golden/specs.yaml for each that is new"


@pytest.mark.parametrize("what", doors.SPEC_FIELDS)
def test_every_field_that_a_person_writes_is_in_a_pinned_spec(what: str) -> None:
    """A field at its default is not in a provenance, so a new name for it could not be seen."""
    given: dict[str, list[dict[str, Any]]] = {
        "spec": list(SPECS.values()),
        "redo": [change for spec in SPECS.values() for change in spec.get("redo", ())],
        "region": [region for spec in SPECS.values() for region in spec.get("regions", ())],
    }
    fields, written = set(doors.SPEC_FIELDS[what].model_fields), {name for values in given[what] for name in values}
    assert fields == written, "tests/golden/specs.yaml names what a spec does not have, or lacks what it has"
