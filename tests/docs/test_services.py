"""The services in `examples/`: known settings, nothing sent anywhere, a log that somebody reads."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml

from flows.deployments.setup import setup

EXAMPLES = Path(__file__).parents[2] / "examples"
UNITS = sorted((EXAMPLES / "systemd").glob("*.service"))
SYSTEMD = shutil.which("systemd-analyze")
OURS = {"DO_NOT_TRACK", "FREESCALE_HOME", "CUDA_VISIBLE_DEVICES"}  # settings of others than Prefect
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false"}
SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
WORKER = {"PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false"}


def settings(unit: Path) -> dict[str, str]:
    lines = [line.partition("=") for line in unit.read_text(encoding="utf-8").splitlines() if "=" in line]
    return dict(value.split("=", 1) for key, _, value in lines if key == "Environment")  # type: ignore[misc]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))["services"])


def services() -> list[tuple[str, dict[str, str]]]:
    """The command and the environment of each service."""
    units = []
    for unit in UNITS:
        (command,) = [line for line in unit.read_text(encoding="utf-8").splitlines() if line.startswith("ExecStart=")]
        units.append((command.removeprefix("ExecStart=/opt/freescale/.venv/bin/"), settings(unit)))
    return units + [(service["command"], service["environment"]) for service in compose().values()]


@pytest.mark.parametrize(("command", "environment"), services())
def test_a_service_has_known_settings_and_reports_nothing(command: str, environment: dict[str, str]) -> None:
    assert [name for name in set(environment) - OURS if not hasattr(prefect.settings, name)] == []
    role = SERVER if command.startswith("prefect server") else WORKER
    assert (QUIET | role).items() <= environment.items()
    assert "--background" not in command


def test_the_three_kinds_of_service_are_there() -> None:
    kinds = {tuple(shlex.split(command)[:3]) for command, _ in services()}
    assert {kind[:2] for kind in kinds} == {
        ("prefect", "server"),
        ("prefect", "worker"),
        ("freescale", "prefect-setup"),
    }
    (words,) = [shlex.split(command) for command, _ in services() if "prefect-setup" in command]
    assert set(words[2::2]) <= {f"--{name}" for name in setup.__code__.co_varnames}


def test_containers_keep_the_home_and_the_database_in_volumes() -> None:
    document = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))
    used = {volume.split(":")[0] for service in document["services"].values() for volume in service["volumes"]}
    assert used == set(document["volumes"])


@pytest.mark.skipif(SYSTEMD is None, reason="no systemd on this machine")
@pytest.mark.parametrize("worse", [False, True])
def test_systemd_reads_the_units(tmp_path: Path, worse: bool) -> None:
    assert SYSTEMD is not None
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/freescale/.venv/bin/prefect", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("Restart=", "Restrat=") if worse else text, encoding="utf-8")
    named = [str(tmp_path / unit.name).replace("@.", "@0.") for unit in UNITS]
    done = subprocess.run([SYSTEMD, "verify", "--man=no", *named], capture_output=True, text=True, timeout=60)
    assert ("Restrat" in done.stderr) == worse, done.stderr
    assert worse or done.returncode == 0, done.stderr
