"""Tasks of the deployments: stages and pictures that are tried again, jobs of a batch; and the state of a flow run."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, get_run_context
from prefect.exceptions import Pause
from prefect.states import Cancelled, Completed, Failed

from stages.errors import SpecError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State as PrefectState

    from flows.batch.jobs_file import QueuedJob
    from flows.batch.runner import State
    from flows.rendering.stop import StopEvent


P = ParamSpec("P")
R = TypeVar("R")
RETRIES = 2
RETRY_DELAY_SECONDS = 10


def retried_task(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A decorator that makes a function a Prefect task: tried `RETRIES` times more, and never cached by Prefect.

    Whether the work of the task is done, the store alone decides.
    """
    return task(
        name=name,
        task_run_name=run_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_SECONDS,
        retry_condition_fn=_may_succeed_again,
    )


def _may_succeed_again(task_: Any, run: Any, state: Any) -> bool:
    """Whether another try can help: a wrong spec or picture stays wrong, other errors may be the machine's."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, SpecError | StageError)


def in_task(queued: QueuedJob, work: Callable[[], State]) -> State:
    """Do the work on one job in a Prefect task of its name, and return how it ended.

    The task is completed (done), failed (set aside) or cancelled (left). Only the run's name goes to the server. The
    task has no retries: a batch tries again by itself, also without a server.
    """
    found: list[State] = []
    stopped: list[BaseException] = []

    @task(name="job", task_run_name=queued.name.replace("{", "(").replace("}", ")"), cache_policy=NO_CACHE)
    def job(run: str) -> PrefectState:
        """Do the work of a job inside a task; return the state that Prefect shows."""
        try:
            found.append(work())
        except BaseException as error:
            stopped.append(error)
            return Cancelled(message=f"{run}: {error}")
        if found[0] == "set aside":
            return Failed(message=f"{run} was set aside; freescale show {run} says why")
        made = Completed if found[0] == "done" else Cancelled
        return made(message=f"{run}: {found[0]}")

    job(queued.job.run, return_state=True)
    if stopped:
        raise stopped[0]
    return found[0]


class FlowState:
    """The state of this flow run on the server, read by a thread: run, hold (paused) or end (suspended, cancelling).

    While the server does not answer, the batch goes on as before.
    """

    POLL_SECONDS = 2.0

    def __init__(self, stop: StopEvent) -> None:
        context = get_run_context()
        assert isinstance(context, FlowRunContext)
        assert context.flow_run is not None
        self.run, self.stop, self.is_held = context.flow_run.id, stop, False
        self.due = context.flow_run.expected_start_time
        self.suspended: PrefectState | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="flow state", daemon=True).start()

    def close(self) -> None:
        """Stop reading the state."""
        self._closed.set()

    def end(self) -> None:
        """Raise `Pause` where the run was suspended: the engine then starts it again when it is resumed."""
        if self.suspended is not None:
            raise Pause(state=self.suspended)

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._closed.wait(self.POLL_SECONDS):
                with suppress(Exception):
                    state = client.read_flow_run(self.run).state
                    if state is not None:
                        self._follow(state)

    def _follow(self, state: PrefectState) -> None:
        self.is_held = state.is_paused()
        if state.is_paused() and state.state_details.pause_reschedule:
            self.suspended = state
        if self.suspended:
            self.stop.ask("suspended")
        elif state.is_cancelling() or state.is_cancelled():
            self.stop.ask("cancelled")
        elif state.is_final():
            self.stop.ask(f"the flow run is {state.name}")
