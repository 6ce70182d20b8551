"""The `evaluate` deployment: the command line's own evaluation, each picture a Prefect task.

A task passes a picture's name and nothing else; the store alone says what is done. A retried task goes on from its
picture's last checkpoint, a retried flow from the pictures that are not read yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.cli.terminal import Terminal
from flows.cluster.pool import crew_of
from flows.deployments.artifacts import Sender
from flows.deployments.render import RETRIES, RETRY_DELAY
from flows.evaluate.layout import Evaluation, Picture, prepare_evaluation
from flows.evaluate.readings import Read, cells, read_all, read_picture
from flows.evaluate.readings_file import ReadingsFile
from flows.evaluate.report import as_json, as_markdown, check_out, write
from flows.home import Home
from flows.rendering.session import Session
from stages.errors import SpecError, StageError
from stages.metrics.spec import EvaluationSpec
from stages.spec import RunOptions


@flow(name="evaluate")
def evaluate(
    spec: EvaluationSpec = EvaluationSpec(),  # noqa: B008
    options: RunOptions = RunOptions(),  # noqa: B008
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    readings_files: list[str] | None = None,
) -> dict[str, Any]:
    """Render and measure. Returns what `freescale evaluate --json` prints; the tables are under the home folder.

    With `workers` so many processes here share the pictures, with `dask` the workers of the scheduler at that address.
    `readings_files` are taken from, and the first is added to.
    """
    home, log = Home.find(), get_run_logger()
    evaluation = prepare_evaluation(spec, home)
    folder = Path(out) if out else home.root / "evaluations" / evaluation.name
    check_out(folder, evaluation, overwrite=False)
    file = ReadingsFile(tuple(map(Path, readings_files or ())))
    file.take(evaluation, home.store)
    log.info("%s: %s %ss", evaluation.name, len(evaluation.pictures), evaluation.kind)
    session = Session(home, options, Terminal(quiet=True))
    try:
        with crew_of(home, session.stop, dask, workers) as crew:
            readings = read_all(evaluation, session, _in_task, crew=crew)
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

    @task(
        name="picture",
        task_run_name=picture.name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY,
        retry_condition_fn=_may_pass_next_time,
    )
    def read(name: str) -> str:
        made.append(read_picture(picture, evaluation, session))
        return name

    read(picture.name)
    return made[-1]


def _may_pass_next_time(task_: Any, run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return not isinstance(error, SpecError | StageError)
