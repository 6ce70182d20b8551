"""Every example that an embedded model renders, through `plan` with every option that `plan` has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doorstep.harness import Case, check

EXAMPLES = Path(__file__).parents[2] / "examples"
SPECS = ("demo.yaml", "regions.yaml", "wide.yaml")
OPTIONS = {
    "": "memory",
    "--why": "memory",
    "--json": '"memory_bytes"',
    "--memory 2GiB": "memory",
    "--vae-memory 64MiB --vae-tile 64": "memory",
    "--vae-memory never": "memory",
    "--seed 3 --format webp": "export",
}
TRACED = {  # each asks for traces of its own
    "--split-guidance": "memory",
    "--steps 6": "0-6",
    "--method freescale/no-fusion --detail-scale 2": "highres_denoise",
    "--solver euler --eta 0": "export",
    "--guidance-scale 1": "memory",
}
CASES = [
    *((SPECS[1], option, says) for option, says in OPTIONS.items()),
    *(pytest.param(SPECS[1], option, says, marks=pytest.mark.thorough) for option, says in TRACED.items()),
    *((spec, "", "memory") for spec in (SPECS[0], SPECS[2])),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home, so that a size is traced once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize(("example", "option", "says"), CASES)
def test_an_example_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, example: str, option: str, says: str
) -> None:
    words = f"plan {EXAMPLES / example} {option}"
    check(Case("", words, says=(says,), code=0, env={"FREESCALE_HOME": str(home)}), tmp_path, monkeypatch)
