"""The `compare` deployment: a comparison as `freescale compare` makes it, each picture a Prefect task of its name."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.batch.runner import Batch
from flows.cluster.batch import ClusterBatch
from flows.cluster.connect import cluster, uses_workers
from flows.compare.layout import prepare_comparison
from flows.compare.page import SHEET, check_out, write
from flows.deployments.artifacts import Sender, picture_link
from flows.deployments.restarts import Crashed, log_crashes
from flows.deployments.tasks import in_task
from flows.home import Home, user_path
from stages.metrics.grid import GridSpec
from stages.observer import NullObserver
from stages.spec import RunOptions


@flow(name="compare")
def compare(
    spec: GridSpec = GridSpec(),  # noqa: B008
    options: RunOptions = RunOptions(),  # noqa: B008
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    crashed: Crashed = (),
) -> dict[str, Any]:
    """Render and show side by side. Returns what `freescale compare --json` prints; the page is under the home.

    The pictures are shared by `workers` processes of this machine, or by the workers of the Dask scheduler at `dask`.
    """
    home, log = Home.find(), get_run_logger()
    log_crashes(log, crashed)
    comparison = prepare_comparison(spec, home)
    folder = user_path(out) if out else home.root / "comparisons" / comparison.name
    check_out(folder, comparison, overwrite=False)
    log.info("%s: %s pictures", comparison.name, len(comparison.jobs))
    if uses_workers(dask, workers):
        with cluster(home, dask, workers or 0) as client:
            states = ClusterBatch(home, options, client, wrap=in_task).run(comparison.jobs)
    else:
        states = Batch(home, options, NullObserver(), wrap=in_task).run(comparison.jobs)
    files = write(folder, comparison, states, home)
    sender = Sender()
    text = f"`{files[0]}`\n\n{picture_link('contact sheet', folder / SHEET)}"
    sender.send(lambda: create_markdown_artifact(text, key=comparison.name))
    sender.close()
    return {"comparison": comparison.name, "tally": Counter(states.values()), "files": [str(path) for path in files]}
