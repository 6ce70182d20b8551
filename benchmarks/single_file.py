"""What a checkpoint of SDXL in one file takes at full size: to plan, to hash, to load. No weights are needed.

    python -m benchmarks.single_file [--dtype float16]

The file has the header of a published checkpoint and a hole for its data: 6.9 GB long, 360 KiB on the disk. Memory is
the anonymous memory of the process: what is mapped from the file can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import torch

from stages.models.files.header import read_header
from stages.models.files.open import load_network
from stages.models.folder import describe
from stages.plan import make_plan
from stages.spec import ModelSpec, make_spec
from tests.checkpoints import full_shapes, write_header

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20


def anonymous() -> int:
    """Return the bytes of this process that are not mapped from a file."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@contextmanager
def measured(name: str, found: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Note the seconds of a body, and by how many MiB the anonymous memory grew at most."""
    before, peak, ends = anonymous(), [0], Event()

    def watch() -> None:
        """Look every few milliseconds until the body ends."""
        while not ends.wait(0.005):
            peak[0] = max(peak[0], anonymous() - before)

    thread = Thread(target=watch)
    thread.start()
    began = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - began
        ends.set()
        thread.join()
        found[name] = (seconds, max(peak[0], anonymous() - before) / MIB)


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float16")
    dtype, found = getattr(torch, parser.parse_args().dtype), dict[str, tuple[float, float]]()
    with tempfile.TemporaryDirectory() as folder:
        file = write_header(Path(folder) / "sdxl.safetensors", full_shapes("SDXL"), hole=True)
        spec, home = (
            make_spec({"prompt": "a", "width": 2048, "height": 2048, "model": {"name": str(file)}}),
            Path(folder),
        )
        describe(ModelSpec(name="shapes"), home)  # the libraries are imported
        with measured("header", found):
            read_header(file)
        with measured("plan by the header alone", found):
            make_plan(spec, describe(spec.model, home, has_weights=False))
        time.sleep(2.1)  # a file is remembered once its last change is past
        with measured("hash", found):
            info = describe(spec.model, home)
        with measured("plan again", found):
            info = describe(spec.model, home)
        for part, network in info.networks.items():
            with measured(f"load {part}", found):
                module = load_network(network, torch.float32 if part == "vae" else dtype)
            weights = sum(p.nbytes for p in module.parameters()) / MIB
            print(f"{part}: {weights:.0f} MiB of weights, {found[f'load {part}'][1]:.0f} MiB of anonymous memory")
            del module
    for name, (seconds, memory) in found.items():
        print(f"{name:28} {seconds:8.2f} s of CPU {memory:10.0f} MiB")
    print(json.dumps({"dtype": str(dtype), **found}))


if __name__ == "__main__":
    main()
