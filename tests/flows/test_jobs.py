"""Jobs files: every format, every error with its line, nothing written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flows.batch.jobs_file import read_jobs
from flows.home import Home
from stages.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


SAME: dict[str, str] = {
    "list.yaml": (
        "- a red disc\n"
        "- {prompt: a green ring, seed: 3, size: 192x128, name: ring, priority: 5, method: {detail_scale: 1.0}}\n"
    ),
    "lines.jsonl": (
        '{"prompt": "a red disc"}\n\n{"prompt": "a green ring", "seed": 3, "width": 192, "height": 128, '
        '"name": "ring", "priority": 5, "method": {"name": "freescale", "detail_scale": 1.0}}\n'
    ),
    "table.csv": (
        "prompt,seed,size,name,priority,method.detail_scale\na red disc,,,,,\na green ring,3,192x128,ring,5,1.0\n"
    ),
    "whole.json": json.dumps(
        {
            "defaults": {"method": "freescale"},
            "jobs": ["a red disc"],
            "grid": {
                "prompt": ["a green ring"],
                "seed": [3],
                "size": ["192x128"],
                "name": ["ring"],
                "priority": [5],
                "method": [{"detail_scale": 1.0}],
            },
        }
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_says_the_same(home: Home, tmp_path: Path, name: str) -> None:
    listed = read_jobs(write(tmp_path, name, SAME[name]), home)
    assert listed.problems == ()
    assert next((o.name, o.priority, o.job.spec.size) for o in listed.jobs) == ("ring", 5, (128, 192))
    reference = read_jobs(write(tmp_path, "reference.yaml", SAME["list.yaml"]), home)
    assert [o.job.run for o in listed.jobs] == [o.job.run for o in reference.jobs]
    assert not (home.root / "store").exists()


def test_prompts_take_the_defaults_and_repetitions_are_one_job(home: Home, tmp_path: Path) -> None:
    path = write(tmp_path, "prompts.txt", "# tonight\na red disc\n\na red disc\na green ring\n")
    listed = read_jobs(path, home, {"size": "256x192"})
    assert {o.job.spec.size for o in listed.jobs} == {(192, 256)}
    assert (len(listed.jobs), listed.repeated) == (2, 1)


def test_a_grid_is_every_combination(home: Home, tmp_path: Path) -> None:
    text = "grid:\n  prompt: [a red disc, a green ring]\n  seed: [1, 2, 3]\n  method: [direct, freescale]\n"
    assert len(read_jobs(write(tmp_path, "grid.yaml", text), home).jobs) == 12


BAD: list[tuple[str, str, str]] = [
    ("a.yaml", "- a red disc\n- {prompt: x, size: 100x128}\n", "a.yaml:2: width: 100"),
    ("a.yaml", "- {prompt: x}\n- 7\n", "a.yaml:2: 7 is neither"),
    ("a.yaml", "- {prompt: x}\n- {prompt: y, colour: red}\n", "a.yaml:2: colour: unknown field"),
    ("a.yaml", "- {prompt: x\n- {\n", "a.yaml:2: not YAML"),
    ("a.yaml", "jobs: 7\n", "`jobs` is not a list"),
    ("a.yaml", "grid: {prompt: x}\n", "`grid` is not a mapping"),
    ("a.yaml", "- {prompt: x, name: ../../etc/cron}\n", "a.yaml:1: name: '../../etc/cron'"),
    ("a.yaml", "- {prompt: x, name: one}\n- {prompt: y, name: one}\n", "a.yaml:2: name: 'one' is another job's"),
    ("a.yaml", "- {prompt: x, priority: high}\n", "a.yaml:1: priority: 'high'"),
    ("a.yaml", "- {prompt: x, image: ../secret.png}\n", "a.yaml:1: image: '../secret.png' leads outside"),
    ("a.jsonl", '{"prompt": "x"}\n{oops\n', "a.jsonl:2: not JSON"),
    ("a.csv", "prompt,seed\nx,1,2\n", "a.csv:2: more cells"),
    ("a.csv", "seed\n1\n", "no column `prompt`"),
]


@pytest.mark.parametrize(("name", "text", "says"), BAD)
def test_what_cannot_be_is_named_with_its_line(home: Home, tmp_path: Path, name: str, text: str, says: str) -> None:
    problems = [str(problem) for problem in read_jobs(write(tmp_path, name, text), home).problems]
    assert len(problems) == 1
    assert says in problems[0]


@pytest.mark.parametrize("name", ["missing.yaml", "jobs.exe"])
def test_what_cannot_be_read_at_all(home: Home, tmp_path: Path, name: str) -> None:
    if name == "jobs.exe":
        write(tmp_path, name, "")
    with pytest.raises(SpecError, match="jobs:"):
        read_jobs(tmp_path / name, home)


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.sampled_from(["../x", "/etc/passwd", "a/../../b", "con\x00", "~", "$(rm -rf /)", "..\\..\\x", "-rf", "."]),
)


@pytest.mark.thorough
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE, image=HOSTILE, mask=HOSTILE)
@example(name="fine", image="con\0", mask="x")
def test_hostile_names_and_paths_write_nothing(home: Home, tmp_path: Path, name: str, image: str, mask: str) -> None:
    row: dict[str, Any] = {"prompt": "x", "name": name, "image": image}
    row["regions"] = [{"mask": mask, "detail_scale": 1.0}]
    path = write(tmp_path, "hostile.jsonl", json.dumps(row) + "\n")
    listed = read_jobs(path, home)
    assert listed.jobs == ()
    assert len(listed.problems) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"hostile.jsonl", "home"}


def test_jobs_have_presets(home: Home, tmp_path: Path) -> None:
    """In every form: a column, a list, a default, a grid; the method's own fields come before its values."""
    small = "size: 192x128"
    files = {
        "a.csv": 'prompt,size,preset,method.leave\nx,192x128,"lightning-4,swift",0.5\nx,192x128,reference,\n',
        "b.yaml": f"- {{prompt: x, {small}, preset: [swift, lightning-4], method: {{leave: 0.5}}}}",
        "c.yaml": f"{{defaults: {{prompt: x, {small}}}, grid: {{preset: [reference, swift, draft]}}}}",
        "d.yaml": f"{{defaults: {{prompt: x, {small}}}, jobs: [{{}}, {{preset: swift}}, {{preset: draft}}]}}",
    }
    found = {name: read_jobs(write(tmp_path, name, text), home) for name, text in files.items()}
    assert [jobs.problems for jobs in found.values()] == [()] * 4
    runs = {name: {queued.job.run for queued in jobs.jobs} for name, jobs in found.items()}
    assert runs["c.yaml"] == runs["d.yaml"]
    assert len(runs["c.yaml"]) == 3
    assert len(runs["a.csv"] & runs["b.yaml"]) == 1
    assert len(runs["a.csv"] & runs["c.yaml"]) == 1
    said = read_jobs(write(tmp_path, "e.yaml", f"- {{prompt: x, {small}, preset: swift, method: direct}}"), home)
    assert "e.yaml:1: preset: 'swift' is the method 'swift', and method is 'direct'" in str(said.problems[0])
