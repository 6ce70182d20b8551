"""`freescale doctor`: versions and known-bad combinations, devices, disk, store, and Prefect's server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from flows.home import Home

KNOWN_BAD = {  # package: (first version known not to work, what happens)
    "fastapi": ((0, 151), "every Prefect flow fails when the server is imported"),
    "sqlalchemy": ((2, 1), "no Prefect schedule ever fires, and nothing says so"),
}
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "prefect",
    "fastapi",
    "sqlalchemy",
    "zarr",
    "dask",
    "pydantic",
)
LOW_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    says: str


def report(home: Home, as_json: bool) -> int:
    """Print all findings; return 0 when all are well, 1 otherwise."""
    findings = [finding for check in CHECKS for finding in check(home)]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings]))
    else:
        for f in findings:
            typer.echo(f"{'ok ' if f.ok else 'BAD'}  {f.what:<12} {f.says}")
    return 0 if all(f.ok for f in findings) else 1


def _versions(home: Home) -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), sys.version.split()[0])
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed")
            continue
        first_bad, what = KNOWN_BAD.get(package, ((10**6,), ""))
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
        bad = numbers >= first_bad
        yield Finding(package, not bad, f"{version}: {what}" if bad else version)


def _devices(home: Home) -> Iterator[Finding]:
    import torch

    yield Finding("cpu", True, f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(f"cuda:{index}", True, f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    if not torch.cuda.is_available():
        yield Finding("cuda", True, "none; renders run on the CPU")
    yield from _attention()


def _attention() -> Iterator[Finding]:
    """Which kernels compute attention, for each device and dtype that is worth a word."""
    import torch

    from freescale.attention import attention_name

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    for device in devices:
        is_gpu = device.type == "cuda"
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if is_gpu else (torch.float32,):
            try:
                says = attention_name(device, dtype)
            except ValueError:
                says = "no fused kernel; choose another dtype"
            what = f"attention {device}" if is_gpu else "attention"
            yield Finding(what, True, f"torch SDPA, {str(dtype).removeprefix('torch.')}: {says}")


def _disk(home: Home) -> Iterator[Finding]:
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home.root, suffix=".partial"):
            pass
    except OSError as error:
        yield Finding("home", False, f"{home.root} cannot be written: {error.strerror}")
        return
    free = shutil.disk_usage(home.root).free
    yield Finding("home", free > LOW_DISK, f"{home.root}, {free / 2**30:.0f} GiB free")


def _store(home: Home) -> Iterator[Finding]:
    keys = home.store.list_keys()
    damaged = [key for key in keys if home.store.verify(key) is not None]
    says = (
        f"{len(keys)} artifacts, all sound"
        if not damaged
        else f"{len(damaged)} of {len(keys)} artifacts damaged: {damaged[0][:8]} …"
    )
    says += f"; {home.bucket}, which answers" if home.bucket else ""
    yield Finding("store", not damaged, says + ("; they are made again when next needed" if damaged else ""))
    yield Finding("runs", True, f"{len(home.runs.list())} recorded")


def _models(home: Home) -> Iterator[Finding]:
    from stages.models.load import available

    names = [
        name for name, folder in available(home.root) if folder.is_file() or (folder / "model_index.json").is_file()
    ]
    yield Finding("models", "shapes" in names, ", ".join(names) or "none found")


def _server(home: Home) -> Iterator[Finding]:
    try:
        from flows.deployments.health import server_health
    except (ImportError, ValueError) as error:  # a package is missing, or a setting of Prefect is refused
        yield Finding("server", False, f"Prefect cannot be imported: {' '.join(str(error).split())}")
        return
    yield from (Finding(*found) for found in server_health())


CHECKS: tuple[Callable[[Home], Iterator[Finding]], ...] = (_versions, _devices, _disk, _models, _store, _server)
