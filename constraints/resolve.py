"""Resolves the exact versions the tests run with: `uv.lock` for uv, and from it `X.Y.txt` for pip, one file a Python.

    make pins                                  keeps each version that still fits pyproject.toml
    python constraints/resolve.py --upgrade    takes the newest of each; arguments are passed on to `uv lock`

Needs uv (`pip install uv`), packaging and a network. The Pythons are the classifiers of pyproject.toml. There,
`[tool.uv] fork-strategy` asks for one version of a package on every Python.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# The wheel of torch names these by exact version, other versions for each build of torch (CPU, CUDA 12, CUDA 13).
CUDA = re.compile(r"^(nvidia|cuda)-|^triton$")
PLATFORMS = [
    {"sys_platform": system, "platform_system": name, "platform_machine": machine}
    for system, name, machine in [
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
        ("win32", "Windows", "AMD64"),
    ]
]
HEADER = """\
# The exact versions for Python {python}, from uv.lock; constraints/resolve.py writes this file.
#   pip install -c constraints/{python}.txt -e '.[dev]'
# The CUDA libraries are left out: torch names those of its own build.
"""


def pythons(pyproject: str) -> list[str]:
    """The versions of Python, as `3.11`, that the classifiers name."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)


def pins(exported: str, python: str) -> list[str]:
    """The lines `name==version` of a `uv export` that some platform needs on this Python, sorted by name."""
    requirements = [Requirement(line) for line in exported.splitlines() if line and not line.startswith("#")]
    needed = [r for r in requirements if _needed(r, python) and not CUDA.search(r.name)]
    return sorted(f"{r.name}{r.specifier}" for r in needed)


def _needed(requirement: Requirement, python: str) -> bool:
    if requirement.marker is None:
        return True
    common = {"python_version": python, "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return any(
        requirement.marker.evaluate({**common, **platform, "python_full_version": f"{python}.{micro}"})
        for platform in PLATFORMS
        for micro in (0, 99)  # a marker may tell the first releases of a Python from its later ones
    )


def main(arguments: list[str]) -> None:
    """Write `uv.lock` and all constraints files anew."""
    subprocess.run(["uv", "lock", *arguments], cwd=ROOT, check=True)
    export = [
        "uv",
        "export",
        "--quiet",
        "--frozen",
        "--all-extras",
        "--no-emit-project",
        "--no-hashes",
        "--no-annotate",
    ]
    exported = subprocess.run(export, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    folder = ROOT / "constraints"
    for old in folder.glob("*.txt"):
        old.unlink()
    for python in pythons((ROOT / "pyproject.toml").read_text(encoding="utf-8")):
        lines = pins(exported, python)
        text = HEADER.format(python=python) + "\n".join(lines) + "\n"
        (folder / f"{python}.txt").write_text(text, encoding="utf-8")
        print(f"constraints/{python}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
