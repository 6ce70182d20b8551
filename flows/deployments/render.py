"""The `render` deployment: the command line's own runner, each stage that has to be made a Prefect task.

Prefect says when and where; the store alone says what is done. Tasks pass a stage's label and fingerprint, never
a tensor, and nothing is cached by Prefect. A retried task goes on from the stage's last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.cluster.fanout import spread_over
from flows.deployments.artifacts import FlowObserver
from flows.home import Home
from flows.rendering.session import Job, Session, prepare
from stages.call import Call
from stages.errors import SpecError, StageError
from stages.observer import Outcome
from stages.runner import Runner
from stages.spec import RenderSpec, RunOptions

RETRIES, RETRY_DELAY = 2, 10  # seconds


@flow(name="render")
def render(
    spec: RenderSpec,
    options: RunOptions = RunOptions(),  # noqa: B008
    out: str | None = None,
    workers: int | None = None,
    dask: str | None = None,
) -> dict[str, Any]:
    """Render one picture. Returns what `freescale render --json` prints; the pictures are under the home folder.

    The VAE's tiles, the frames of videos and the exports are computed by `workers` processes here, or by those of the
    scheduler at `dask`.
    """
    home = Home.find()
    job = prepare(spec, home)
    observer = FlowObserver(job.plan, get_run_logger())
    try:
        observer.began(job)
        session = TaskSession(home, options, observer)
        with spread_over(home, options, session.stop, dask, workers) as session.spread:
            result = session.render(job, Path(out) if out else None)
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

        @task(
            name=call.stage.name,
            task_run_name=f"{call.label} {key[:8]}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=RETRY_DELAY,
            retry_condition_fn=_may_pass_next_time,
        )
        def stage(label: str, fingerprint: str) -> str:
            made.append(Runner.make(self, call, key, outcomes))
            return fingerprint

        stage(call.label, key)
        return made[-1]


def _may_pass_next_time(task_: Any, run: Any, state: Any) -> bool:
    """A bad spec or a picture that cannot be right will be so again; anything else may have been the machine."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, SpecError | StageError)
