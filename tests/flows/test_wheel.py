"""The wheel: what is inside, and that its command works from a folder that is no checkout, deployments included."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployments.automations import AGAIN, SILENT, UNSTARTED

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "freescale", "stages", "storage")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / told.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of a new environment with the wheel; what it depends on is lent by the environment of the tests.

    Lent by a path file, which reads no path file of the other environment: its editable installation stays unseen.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder)]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], env=plain(folder), check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(packages, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.fixture(scope="module")
def with_dependencies(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of a new environment into which pip brought the wheel and all it depends on, some gigabytes."""
    if not os.environ.get("FREESCALE_INSTALL"):
        pytest.skip("FREESCALE_INSTALL=1 installs the wheel with all it depends on, from the index")
    folder = tmp_path_factory.mktemp("whole")
    venv.create(folder, with_pip=True)
    constraints = ROOT / "constraints" / f"{sys.version_info[0]}.{sys.version_info[1]}.txt"
    command = [str(folder / "bin" / "pip"), "install", "--quiet", "--constraint", str(constraints), str(wheel)]
    subprocess.run(command, env=plain(folder), check=True)
    return folder / "bin"


def plain(folder: Path) -> dict[str, str]:
    """Today's environment without what leads to this checkout or to a server, and with a home of its own."""
    kept = {name: word for name, word in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PREFECT")}
    return kept | {"FREESCALE_HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect")}


TWICE = """
import runpy, sys
script, *words = sys.argv[1:]
for told in (["doctor"], words):
    sys.argv = [script, *told]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def call(scripts: Path, folder: Path, *words: str) -> str:
    """What the installed command prints, started in a folder that is no checkout."""
    return run([str(scripts / "freescale"), *words], folder)


def run(command: list[str], folder: Path) -> str:
    """What a process prints that ends well."""
    told = subprocess.run(command, cwd=folder, env=plain(folder), capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def check_it_renders(scripts: Path, folder: Path) -> None:
    """`doctor` finds nothing wrong, and `render` leaves a picture; in one process, whose imports are most of it."""
    words = ["render", "a red disc", "--size", "128x128", "--steps", "2", "--out", "disc.png"]
    assert "BAD" not in run([str(scripts / "python"), "-c", TWICE, str(scripts / "freescale"), *words], folder)
    assert (folder / "disc.png").read_bytes().startswith(b"\x89PNG")


def check_its_deployments(scripts: Path, folder: Path, server: str) -> None:
    """`prefect-setup` makes all five, whose runs work in the home."""
    told = call(scripts, folder, "prefect-setup", "--api", server)
    assert sum(line.startswith("deployment ") for line in told.splitlines()) == 5
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        deployments = client.read_deployments()
        for deployment in deployments:  # the server is one for all tests: others count what they make
            client.delete_deployment(deployment.id)
        client.delete_work_pool(deployments[0].work_pool_name)
        for name in (SILENT, UNSTARTED, AGAIN):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
    place = {"directory": str(folder / "home")}
    step = {"prefect.deployments.steps.set_working_directory": place}
    assert [deployment.pull_steps for deployment in deployments] == [[step]] * 5
    assert (folder / "home").is_dir()


def test_it_has_every_file_of_the_packages_and_no_other_folder(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == there | {"flows/deployments/prefect.yaml"}


def test_it_has_the_deployments_and_the_license_unchanged(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (license_file,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read("flows/deployments/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
@pytest.mark.thorough
def test_installed_it_renders_from_any_folder(installed: Path, tmp_path: Path) -> None:
    check_it_renders(installed, tmp_path)


@pytest.mark.server
@pytest.mark.thorough
@pytest.mark.filterwarnings("default")  # Prefect's own warnings are not ours
def test_installed_it_makes_its_deployments_from_any_folder(
    installed: Path, tmp_path: Path, prefect_server: str
) -> None:
    check_its_deployments(installed, tmp_path, prefect_server)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.filterwarnings("default")  # Prefect's own warnings are not ours
def test_installed_by_pip_alone_it_does_both(with_dependencies: Path, tmp_path: Path, prefect_server: str) -> None:
    check_it_renders(with_dependencies, tmp_path)
    check_its_deployments(with_dependencies, tmp_path, prefect_server)
