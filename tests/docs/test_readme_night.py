"""The README's lines for every night, typed into a shell with an empty home; the server answers an hour later.

`FREESCALE_NIGHT=1 pytest -s tests/docs/test_readme_night.py`; `FREESCALE_ALIVE` is how many seconds it has to log.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
ALIVE = float(os.environ.get("FREESCALE_ALIVE", "3600"))

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif("FREESCALE_NIGHT" not in os.environ, reason="an hour: FREESCALE_NIGHT=1 runs it"),
]


def typed() -> list[str]:
    """The commands of the block with `prefect-setup`, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "prefect-setup" in block]
    return [line for line in block.splitlines() if line]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment of its own; what was started in it is ended, the worker first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FREESCALE_"))}
    yield quiet | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FREESCALE_HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FREESCALE_HOME") == str(tmp_path / "home"):
                process.kill()


def type_in(line: str, place: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, shell=True, env=place, cwd=folder, capture_output=True, text=True, timeout=600)


def test_the_night_of_the_readme_stays_up(place: dict[str, str], tmp_path: Path) -> None:
    *lines, doctor = typed()
    for line in lines:
        done = type_in(line, place, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    patience = time.monotonic() + 300
    while (told := type_in(doctor, place, tmp_path)).returncode != 0:  # until the worker was heard
        assert time.monotonic() < patience, told.stdout
    print(told.stdout)
    log = tmp_path / "server.log"
    before, end = log.stat().st_size, time.monotonic() + ALIVE
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{place['PREFECT_API_URL']}/health", timeout=60) as answer:
            assert answer.status == 200
        time.sleep(1)
    assert log.stat().st_size > before
    assert type_in(doctor, place, tmp_path).returncode == 0
