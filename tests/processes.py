"""Real processes of the command line and of Dask workers, quick to start: a server that has all imported forks them.

A test that kills dozens of them would spend most of its time on imports. The server has loaded modules and nothing
else but a table: no model, no store, no thread of a running event loop.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess

MODULES = [
    "tests.processes",
    "flows.cli.flags",
    "flows.cli.terminal",
    "flows.cluster.fanout",
    "flows.cluster.fanout_worker",
    "flows.cluster.worker",
    "flows.rendering.advice",
    "flows.rendering.session",
    "distributed.nanny",
    "diffusers.guiders",
    "diffusers.models.unets.unet_3d_condition",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "diffusers.schedulers.scheduling_unipc_multistep",
    "scipy.stats",
    "tests.preloaded",
]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(MODULES)


def freescale(told: Path, *words: str, heartbeat: float = 10.0) -> ForkServerProcess:
    """Start `freescale words…`; what it prints goes to the files `told`.out and `told`.err, and to `told`.cpu at
    its end the seconds of a core that it took.

    It has the environment and the working directory of the caller.
    `heartbeat`: seconds between two signs of life on its leases.
    """
    arguments = (str(told), words, heartbeat, dict(os.environ), os.getcwd())
    process = _SERVER.Process(target=_main, args=arguments)
    process.start()
    return process


@contextmanager
def forked_workers() -> Iterator[None]:
    """Let the server fork the workers of the Dask clusters that are started in the body, where Dask would spawn them.

    They have the environment that the server began with.
    """
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # names modules of its own, once
        _SERVER.set_forkserver_preload(MODULES)
        yield


def _main(told: str, words: tuple[str, ...], heartbeat: float, environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()  # TZ may be another
    importlib.reload(sys.modules["huggingface_hub.constants"])  # it reads the environment once
    os.chdir(folder)
    from flows.cli import app as cli
    from storage import locks

    locks.HEARTBEAT_SECONDS = heartbeat
    for number, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{told}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["freescale", *words]
    try:
        cli.main()
    finally:
        Path(f"{told}.cpu").write_text(str(time.process_time()))
