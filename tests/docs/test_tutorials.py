"""What the tutorials say to type works: their commands at small sizes, and the method that one of them writes."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml
from PIL import Image

from docs.generate import ROOT
from tests.docs.test_pages import FENCE, text_of

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = tomllib.loads(text_of("pyproject.toml"))["project"]["scripts"]["freescale"]
METHOD = "docs/tutorials/write-a-method.md"


def block(page: str, language: str) -> str:
    """The only block of a language on a page."""
    (body,) = [body for found, body in FENCE.findall(text_of(page)) if found == language]
    return str(body)


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command line as a person types it, in a folder and a home of its own; return the exit code."""
    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    module, _, function = SCRIPT.partition(":")

    def run(line: str) -> int:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            getattr(importlib.import_module(module), function)()
        return int(end.value.code or 0)

    return run


def size_of(picture: Path) -> tuple[int, int]:
    """(width, height) of a picture."""
    with Image.open(picture) as opened:
        return opened.size


def line_of(page: str, beginning: str) -> str:
    """The command of a page that begins so."""
    found = re.search(rf"^{re.escape(beginning)}.*$", text_of(page), re.MULTILINE)
    assert found is not None, beginning
    return found[0]


@pytest.mark.thorough
def test_first_picture(typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    page = "docs/tutorials/first-picture.md"
    render = line_of(page, "freescale render").replace("256x256", "192x128")
    assert typed(render) == 0
    said = capsys.readouterr()
    for stage in re.findall(r"^  (\w+ \d)", block(page, "text"), re.MULTILINE):
        assert stage in said.err + said.out, stage
    assert size_of(tmp_path / "disc.png") == (192, 128)
    assert typed(line_of(page, "freescale plan").replace("768x512", "192x128")) == 0
    assert typed("freescale runs --json") == 0
    name = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = re.search(r"a-red-disc[\w-]+", json.dumps(name))
    assert run is not None
    assert typed(line_of(page, "freescale redo").replace("RUN", run[0]) + " --plan") == 0
    assert "reused" in capsys.readouterr().out


@pytest.mark.thorough
def test_overnight(typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    page = "docs/tutorials/overnight.md"
    jobs = block(page, "yaml")
    values = yaml.safe_load(jobs)
    count = len(values["jobs"]) + len(values["grid"]["prompt"]) * len(values["grid"]["seed"])
    (tmp_path / "jobs.yaml").write_text(jobs.replace("steps: 8", "steps: 1"))
    assert typed(line_of(page, "freescale batch")) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == count == 6
    assert capsys.readouterr().out.splitlines()[-1].endswith("index.html")


@pytest.mark.thorough
def test_compare(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = "docs/tutorials/compare.md"
    text = block(page, "yaml").replace("256x256", "192x128").replace("steps: 8", "steps: 1")
    (tmp_path / "comparison.yaml").write_text(text)
    assert typed(line_of(page, "freescale compare")) == 0
    assert {"index.html", "contact-sheet.png"} <= {path.name for path in (tmp_path / "compared").iterdir()}
    assert typed(line_of(page, "freescale study make")) == 0
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"study.html", "key.json"}
    assert typed(line_of(page, "freescale evaluate --method") + " --plan") == 0


def test_the_card_of_your_model_has_known_keys() -> None:
    card = json.loads(block("docs/tutorials/your-model.md", "json"))
    page = text_of("docs/reference/models.md")
    assert all(f"`{key}`" in page for key in card)


IN_A_FRESH_PYTHON = """
import contextlib, importlib, shlex, sys, pytest
from freescale.methods import METHODS
from resample import Resample
METHODS["resample"] = Resample
for line in sys.argv[2:]:
    sys.argv[:] = shlex.split(line)
    with contextlib.suppress(SystemExit):
        importlib.import_module("{module}").{function}()
words = ["-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "-k", "resample and TestRecord"]
sys.exit(pytest.main([*words, "tests/freescale/test_conformance.py"]))
"""


def test_the_method_is_as_short_as_its_title_says() -> None:
    assert len([line for line in block(METHOD, "python").splitlines() if line.strip()]) <= 60


@pytest.mark.thorough
def test_the_method_renders_and_conforms(tmp_path: Path) -> None:
    (tmp_path / "resample.py").write_text(block(METHOD, "python"))
    shown = line_of(METHOD, "freescale render").replace("--steps 8", "--steps 4")
    sizes = {"128x128": (128, 128), "192x128": (192, 128)}
    lines = [f"{shown.replace('256x192', name)} --out {tmp_path}/{name}.png" for name in sizes]
    module, _, function = SCRIPT.partition(":")
    code = IN_A_FRESH_PYTHON.format(module=module, function=function)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "FREESCALE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, "freescale", *lines]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert ": 128x128 with resample" in done.stderr
    assert re.search(r"-> 192x128 with resample", done.stderr)
    for name, size in sizes.items():
        assert size_of(tmp_path / f"{name}.png") == size
