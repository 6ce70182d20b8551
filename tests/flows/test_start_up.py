"""What a command imports before it does anything, counted in modules: seconds depend on the machine, modules do not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.cli.app import main
from stages.planner import networks
from stages.planner.networks import trace_step

if TYPE_CHECKING:
    from stages.stage import Stage

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
import json, shlex, sys
from flows.cli.app import main
codes = []
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(json.dumps({"codes": codes, "modules": sorted(sys.modules)}))
"""


def imported(*lines: str) -> set[str]:
    """The modules of a process that ran these command lines to their ends, one after another."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *lines],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["codes"] == [0] * len(lines), run.stderr
    return set(told["modules"])


def test_a_light_command_imports_no_heavy_package(tmp_path: Path) -> None:
    """Help, the list of runs and one of them: not even all of them together."""
    home = ROOT / "tests" / "golden" / "home"
    run = sorted(path.name for path in (home / "store" / "runs").iterdir())[0]
    help, listed = ("freescale --help", "freescale render --help"), f"freescale runs --home {tmp_path}"
    modules = imported(*help, listed, f"freescale show {run} --home {home}")
    assert modules & HEAVY == set()
    assert len(modules) <= 480


def test_a_second_plan_imports_neither_diffusers_nor_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, in this process, traces the networks, which needs diffusers; what it found is kept in the home."""
    words = ("plan", "a red disc", "--size", "128x128", "--home", str(tmp_path))
    traced: list[Stage] = []
    monkeypatch.setattr(networks, "trace_step", lambda *of: traced.append(of[0]) or trace_step(*of))
    monkeypatch.setattr(sys, "argv", ["freescale", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert traced
    assert "diffusers" in sys.modules
    assert (tmp_path / "cache" / "traces.json").is_file()
    modules = imported(shlex.join(("freescale", *words)))
    assert modules & (HEAVY - {"torch", "numpy", "PIL"}) == set()
    assert len(modules) <= 1800
