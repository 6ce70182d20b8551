"""The connection to a Dask cluster: a scheduler that is there already, or worker processes of this machine."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from flows.home import Home

MOST_WORKERS = 1024
MOST_DEATHS = 100  # of workers that Dask forgives a task; a batch counts the attempts of a job by itself, in the home
SETTINGS = {"distributed.scheduler.worker-ttl": "60 s"}
CONNECT_TIMEOUT = "60 s"  # for the scheduler, and again for its first worker
LOCALHOST = "127.0.0.1"  # no other machine can reach the worker processes that are started here
IGNORE_SIGINT = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C reaches workers by a stop file


@contextmanager
def cluster(home: Home, address: str | None, workers: int, deaths: int = MOST_DEATHS) -> Iterator[Client]:
    """A client of the scheduler at `address`, or of `workers` processes started here, one a GPU where there are any.

    A task whose worker died goes to another worker, `deaths` times; a scheduler that was there already uses its own
    limit. Raises `SpecError` for an address where none answers, or for more workers than GPUs.
    """
    import dask
    from distributed import Client

    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # of the worker processes
    logging.getLogger("distributed").setLevel(logging.ERROR)  # of this process, where Dask was imported before
    settings = {"distributed.scheduler.allowed-failures": deaths, "temporary-directory": str(home.root / "cache/dask")}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS | settings))
        where = address if address is not None else stack.enter_context(_local_cluster(workers))
        try:
            client = stack.enter_context(Client(where, timeout=CONNECT_TIMEOUT, set_as_default=False))  # type: ignore[no-untyped-call]
            client.wait_for_workers(max(workers, 1), timeout=CONNECT_TIMEOUT)
        except (OSError, TimeoutError, ValueError) as error:
            reason = error or CONNECT_TIMEOUT
            raise SpecError(f"dask: no scheduler with a worker answers at {address!r}: {reason}") from None
        if not _gpu_workers(client):
            raise SpecError(f"dask: no worker at {address!r} takes tasks; start them with --resources GPU=1")
        yield client


def uses_workers(address: str | None, workers: int | None) -> bool:
    """Whether an address or a number of workers is given.

    Raises `SpecError` where both are, or where the number is not in 1 to 1024.
    """
    if address is not None and workers is not None:
        raise SpecError("dask: an address has workers of its own; leave out workers")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise SpecError(f"workers: {workers} is not a number from 1 to {MOST_WORKERS}")
    return address is not None or workers is not None


def worker_count(client: Client) -> int:
    """The workers with a GPU, or with this machine's CPU; at least 1, for one may be starting again."""
    return max(_gpu_workers(client), 1)


def _gpu_workers(client: Client) -> int:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(bool(worker.get("resources", {}).get("GPU")) for worker in workers)


def _local_cluster(workers: int) -> Any:
    """Processes of this machine, each with its GPU in `CUDA_VISIBLE_DEVICES`; one that died is started again."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count()
    if gpus and workers > gpus:
        raise SpecError(f"workers: {workers} is more than the {gpus} GPUs of this machine")

    def options(number: int) -> dict[str, Any]:
        """Return the options of one worker, which sees one GPU where there are GPUs."""
        own_gpu = {"env": {"CUDA_VISIBLE_DEVICES": str(number)}} if gpus else {}
        common = {"nthreads": 1, "resources": {"GPU": 1}, "memory_limit": 0}
        return {"name": f"worker-{number}", "host": LOCALHOST, "preload": [IGNORE_SIGINT], **common, **own_gpu}

    return SpecCluster(  # type: ignore[no-untyped-call]
        workers={f"worker-{n}": {"cls": Nanny, "options": options(n)} for n in range(workers)},
        scheduler={
            "cls": Scheduler,
            "options": {"dashboard": False, "dashboard_address": f"{LOCALHOST}:0", "port": 0, "host": LOCALHOST},
        },
        silence_logs="error",
    )
