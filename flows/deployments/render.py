"""The `render` deployment: a render as `freescale render` makes it, each stage that has to be made a Prefect task.

Prefect decides when and where; the store alone says what is done. Tasks pass the label and the key of a stage, never a
tensor, and Prefect caches nothing. A task that is tried again goes on from the last checkpoint of its stage.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.cluster.fanout import open_fanout
from flows.deployments.artifacts import FlowObserver
from flows.deployments.restarts import Crashed, log_crashes
from flows.deployments.tasks import retried_task
from flows.home import Home, user_path
from flows.rendering.job import Job, prepare
from flows.rendering.probing import probed
from flows.rendering.session import Session
from stages.call import Call
from stages.observer import Outcome
from stages.runner import Runner
from stages.spec import RenderSpec, RunOptions


@flow(name="render")
def render(
    spec: RenderSpec,
    options: RunOptions = RunOptions(),  # noqa: B008
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
    crashed: Crashed = (),
) -> dict[str, Any]:
    """Render one picture. Returns what `freescale render --json` prints; the pictures are under the home folder.

    The tiles of the VAE, the frames of videos and the exports are computed by `workers` processes of this machine, or
    by the workers of the Dask scheduler at `dask`.
    """
    home, log = Home.find(), get_run_logger()
    log_crashes(log, crashed)
    job = probed(prepare(spec, home), home, options)
    observer = FlowObserver(job.plan, log)
    try:
        observer.began(job)
        session = TaskSession(home, options, observer)
        with open_fanout(home, options, session.stop, dask, workers) as session.helpers:
            result = session.render(job, user_path(out) if out else None)
        for level, path in enumerate(reversed(result.outputs[-len(job.plan.exports) :])):
            observer.preview(level, path)
        observer.summary(job, result)
        return result.as_json()
    finally:
        observer.close()


class TaskSession(Session):
    """A session whose runner makes each stage inside a Prefect task of the stage's name."""

    def runner(self, job: Job) -> Runner:
        """The session's runner, with tasks."""
        plain = super().runner(job)
        return TaskRunner(plain.store, plain.models, plain.options, plain.observer, plain.stop, plain.helpers)


class TaskRunner(Runner):
    """Stages as tasks: named, retried, visible, their state in the store."""

    def make(self, call: Call, key: str, outcomes: dict[str, Outcome]) -> Outcome:
        """Make one stage in a task of its own."""
        made: list[Outcome] = []

        @retried_task(call.stage.name, f"{call.label} {key[:8]}")
        def stage(label: str, fingerprint: str) -> str:
            """Make one stage inside a task; return its key."""
            made.append(Runner.make(self, call, key, outcomes))
            return fingerprint

        stage(call.label, key)
        return made[-1]
