"""Real processes of the command line, quick to start: each is forked from a server that has it imported already.

A test that kills dozens of them would spend most of its time on imports. The server has loaded modules and nothing
else: no model, no store, no thread of a running event loop.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["tests.processes", "flows.cli.app", "flows.cli.flags", "flows.rendering.session", "flows.cli.terminal"]
)


def freescale(told: Path, *words: str, heartbeat: float = 10.0) -> ForkServerProcess:
    """Start `freescale words…`; what it prints goes to the files `told`.out and `told`.err.

    `heartbeat`: seconds between two signs of life on its leases.
    """
    process = _SERVER.Process(target=_main, args=(str(told), words, heartbeat))
    process.start()
    return process


def _main(told: str, words: tuple[str, ...], heartbeat: float) -> None:
    from flows.cli import app as cli
    from storage import locks

    locks.HEARTBEAT_SECONDS = heartbeat
    for number, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{told}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["freescale", *words]
    cli.main()
