"""What installs the project agrees: pyproject.toml, the Makefile, the constraints of each Python and `uv.lock`."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
RESOLVE = runpy.run_path(str(ROOT / "constraints" / "resolve.py"))
PYTHONS = RESOLVE["pythons"]((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned(python: str) -> dict[str, str]:
    """Name and version of every pin for a Python."""
    lines = (ROOT / "constraints" / f"{python}.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(str(r.specifier).startswith("==") for r in requirements)
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def wanted() -> list[tuple[str | None, Requirement]]:
    """Every requirement of pyproject.toml, with the extra that it belongs to."""
    extras = PROJECT["optional-dependencies"].items()
    plain: list[tuple[str | None, Requirement]] = [(None, Requirement(line)) for line in PROJECT["dependencies"]]
    return plain + [(extra, Requirement(line)) for extra, lines in extras for line in lines]


# --- one set of Pythons ------------------------------------------------------------------------------------------


def test_the_classifiers_name_each_python_that_pip_admits() -> None:
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}.1" in admitted] == PYTHONS


def test_each_python_has_its_constraints() -> None:
    assert sorted(path.stem for path in (ROOT / "constraints").glob("*.txt")) == sorted(PYTHONS)


def test_make_tries_each_python() -> None:
    found = re.search(r"^CANDIDATES := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    candidates = found[1].split()
    assert sorted(name for name in candidates if "." in name) == sorted(f"python{python}" for python in PYTHONS)
    assert candidates[-2:] == ["python3", "python"]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_pin_is_what_pyproject_admits(python: str) -> None:
    versions = pinned(python)
    for _, requirement in wanted():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_each_pin_is_the_locks(python: str) -> None:
    locked: dict[str, set[str]] = {}
    for package in LOCK["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    assert {name: version for name, version in pinned(python).items() if version not in locked.get(name, set())} == {}


def test_the_lock_is_of_todays_pyproject() -> None:
    assert SpecifierSet(LOCK["requires-python"]) == SpecifierSet(PROJECT["requires-python"])
    (own,) = (package for package in LOCK["package"] if package["name"] == PROJECT["name"])
    told = {
        (canonicalize_name(entry["name"]), SpecifierSet(entry.get("specifier", "")), entry.get("marker"))
        for entry in own["metadata"]["requires-dist"]
    }
    assert told == {
        (canonicalize_name(requirement.name), requirement.specifier, f"extra == '{extra}'" if extra else None)
        for extra, requirement in wanted()
    }, "run `make pins`"


def test_pins_follow_the_markers_and_leave_out_the_cuda_libraries() -> None:
    exported = "\n".join(
        [
            "# what uv exported",
            "b-new==2 ; python_full_version >= '3.13'",
            "a-old==1 ; python_full_version < '3.11.3'",
            "c-windows==3 ; sys_platform == 'win32'",
            "d-web==4 ; sys_platform == 'emscripten'",
            "nvidia-nccl-cu13==5 ; sys_platform == 'linux'",
            "triton==6",
        ]
    )
    assert RESOLVE["pins"](exported, "3.11") == ["a-old==1", "c-windows==3"]
    assert RESOLVE["pins"](exported, "3.13") == ["b-new==2", "c-windows==3"]


# --- which Python `make` takes -----------------------------------------------------------------------------------


def make_installed(folder: Path, *candidates: str) -> subprocess.CompletedProcess[str]:
    """What `make` says it would do with these candidates: its own commands, up to the installation."""
    words = [
        "make",
        "--no-print-directory",
        "-C",
        str(ROOT),
        f"VENV={folder / 'venv'}",
        f"CANDIDATES={' '.join(candidates)}",
    ]
    told = subprocess.run(
        [*words, "-n", str(folder / "venv" / ".installed")], capture_output=True, text=True, check=True
    )
    chosen = told.stdout.split('echo "making')[0].rstrip().rstrip("\\").rstrip()
    script = f'{chosen} echo "$python $version"'
    return subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def stand_in(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_make_passes_over_what_does_not_run_or_is_too_old(tmp_path: Path) -> None:
    shim = stand_in(tmp_path / "python3.13", "echo 'command not found' >&2; exit 127")
    old = stand_in(tmp_path / "python3.12", "echo 3.9")
    new = stand_in(tmp_path / "python3.11", "echo 3.11")
    told = make_installed(tmp_path, "no-such-python", shim, old, new, sys.executable)
    assert told.stdout.split() == [new, "3.11"]


def test_make_says_so_where_no_python_will_do(tmp_path: Path) -> None:
    told = make_installed(tmp_path, stand_in(tmp_path / "python3", "echo 3.99"))
    assert told.returncode == 1
    assert told.stderr.startswith(f"none of these runs, is a Python of {' '.join(sorted(PYTHONS))} and has venv: ")
