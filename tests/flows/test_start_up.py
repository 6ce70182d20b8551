"""What a command imports before it does anything, counted in modules: seconds depend on the machine, modules do not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stages import device

DRIVEN = not device._has_no_driver()  # an accelerator may be there
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
there = [name for name, module in sys.modules.items() if type(module).__name__ != "_StandIn"]  # of torch
print(json.dumps({"codes": codes, "modules": there}))
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


def test_help_imports_neither_the_store_nor_pydantic() -> None:
    modules = imported("freescale --help")
    assert modules & {"pydantic", "storage", "stages.spec"} == set()
    assert len(modules) <= 400


def test_a_light_command_imports_no_heavy_package(tmp_path: Path) -> None:
    """Help, the list of runs and one of them: not even all of them together."""
    home = ROOT / "tests" / "golden" / "home"
    run = sorted(path.name for path in (home / "store" / "runs").iterdir())[0]
    help, listed = ("freescale --help", "freescale render --help"), f"freescale runs --home {tmp_path}"
    modules = imported(*help, listed, "freescale presets", f"freescale show {run} --home {home}")
    assert modules & HEAVY == set()
    assert len(modules) <= 500


def test_a_first_plan_traces_in_another_process_and_a_second_one_not_at_all(tmp_path: Path) -> None:
    """The networks are those of a size that is not shipped; what the other process found is kept in the home."""
    words = shlex.join(("freescale", "plan", "a red disc", "--size", "136x136", "--home", str(tmp_path)))
    first = imported(words)
    kept = (tmp_path / "cache" / "traces.json").read_text()
    assert len(json.loads(kept)) > 4
    second = imported(words)
    assert (tmp_path / "cache" / "traces.json").read_text() == kept
    for modules in (first, second):
        assert modules & (HEAVY - {"numpy", "PIL"} - ({"torch"} if DRIVEN else set())) == set()
        assert len(modules) <= (1800 if DRIVEN else 700)
    assert "multiprocessing" in first - second


@pytest.mark.skipif(DRIVEN, reason="torch is asked for the memory of an accelerator")
@pytest.mark.parametrize("size", [pytest.param("512x512", marks=pytest.mark.thorough), "16384x16384"])
def test_a_first_plan_of_a_usual_size_imports_no_torch(size: str, tmp_path: Path) -> None:
    """What traces find of the embedded models comes with the package."""
    modules = imported(shlex.join(("freescale", "plan", "a red disc", "--size", size, "--home", str(tmp_path))))
    assert modules & (HEAVY - {"numpy", "PIL"}) == set()


LAZY = """
import sys, threading
from flows.cli.lazy_torch import postpone
postpone()
import freescale.frequency, freescale.windows
assert "torch._C" not in sys.modules
seen = []
uses = [threading.Thread(target=lambda: seen.append(len(freescale.windows.place_windows((8, 8), (2, 2)))))
        for _ in range(4)]
for each in uses: each.start()
for each in uses: each.join()
assert len(set(seen)) == 1 and len(seen) == 4, seen
import torch
assert "torch._C" in sys.modules
assert freescale.windows.torch is torch is sys.modules["torch"]
assert freescale.frequency.F is torch.nn.functional is sys.modules["torch.nn.functional"]
postpone()
assert sys.modules["torch"] is torch
"""


@pytest.mark.thorough
def test_torch_takes_the_place_of_its_stand_ins_at_the_first_use() -> None:
    """Also where four threads use it first."""
    subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
