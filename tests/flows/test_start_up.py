"""What a command imports before it does anything, counted in modules: seconds depend on the machine, modules do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "zarr",
    "numpy",
    "diffusers",
    "transformers",
    "dask",
    "distributed",
    "prefect",
    "scipy",
    "PIL",
    "fsspec",
}
MEASURE = """
import json, sys
try:
    from flows.cli.app import main
    main()
except SystemExit as ended:
    print(json.dumps({"code": ended.code or 0, "modules": sorted(sys.modules)}))
"""


def imported(*words: str) -> set[str]:
    """The modules of a process that ran `freescale words…` to its end."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["code"] == 0, run.stderr
    return set(told["modules"])


@pytest.mark.parametrize(("words", "most"), [(("--help",), 420), (("render", "--help"), 420), (("runs",), 430)])
def test_a_light_command_imports_no_heavy_package(words: tuple[str, ...], most: int, tmp_path: Path) -> None:
    modules = imported(*words, *(() if "--help" in words else ("--home", str(tmp_path))))
    assert modules & HEAVY == set()
    assert len(modules) <= most
