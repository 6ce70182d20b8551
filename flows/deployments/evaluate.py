"""The `evaluate` deployment: an evaluation as `freescale evaluate` makes it, each picture a Prefect task.

A task passes the name of a picture and nothing else; the store alone says what is done. A task that is tried again goes
on from the last checkpoint of its picture, a flow that is tried again with the pictures that are not read yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.cluster.pool import open_pool
from flows.deployments.artifacts import Sender
from flows.deployments.restarts import Crashed, log_crashes
from flows.deployments.tasks import retried_task
from flows.evaluate.layout import Evaluation, Picture, prepare_evaluation
from flows.evaluate.readings import Read, cells, read_all, read_picture
from flows.evaluate.readings_file import ReadingsFile
from flows.evaluate.report import as_json, as_markdown, check_out, write
from flows.home import Home, user_path
from flows.rendering.session import Session
from stages.metrics.spec import EvaluationSpec
from stages.observer import NullObserver
from stages.spec import RunOptions


@flow(name="evaluate")
def evaluate(
    spec: EvaluationSpec = EvaluationSpec(),  # noqa: B008
    options: RunOptions = RunOptions(),  # noqa: B008
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    readings_files: list[str] | None = None,
    crashed: Crashed = (),
) -> dict[str, Any]:
    """Render and measure. Returns what `freescale evaluate --json` prints; the tables are under the home folder.

    The pictures are shared by `workers` processes of this machine, or by the workers of the Dask scheduler at `dask`.
    Readings are taken from `readings_files` where they have them, and new ones are added to the first.
    """
    home, log = Home.find(), get_run_logger()
    log_crashes(log, crashed)
    evaluation = prepare_evaluation(spec, home)
    folder = user_path(out) if out else home.root / "evaluations" / evaluation.name
    check_out(folder, evaluation, overwrite=False)
    file = ReadingsFile(tuple(map(Path, readings_files or ())))
    file.take(evaluation, home.store)
    log.info("%s: %s %ss", evaluation.name, len(evaluation.pictures), evaluation.kind)
    session = Session(home, options, NullObserver())
    try:
        with open_pool(home, session.stop, dask, workers) as pool:
            readings = read_all(evaluation, session, _in_task, pool=pool)
    finally:
        file.add(evaluation, home.store)
    found = list(cells(evaluation, readings))
    files = write(folder, evaluation, found, readings)
    sender = Sender()
    sender.send(lambda: create_markdown_artifact(as_markdown(evaluation, found), key=evaluation.name))
    sender.close()
    record = as_json(evaluation, found, readings)
    return {"evaluation": evaluation.name, "rows": record["rows"], "files": [str(path) for path in files]}


def _in_task(picture: Picture, evaluation: Evaluation, session: Session) -> Read:
    """Read one picture in a task of its own: named, retried, visible."""
    made: list[Read] = []

    @retried_task("picture", picture.name)
    def read(name: str) -> str:
        """Read one picture inside a task; return its name."""
        made.append(read_picture(picture, evaluation, session))
        return name

    read(picture.name)
    return made[-1]
