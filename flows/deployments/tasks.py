"""A night under Prefect: its jobs as tasks of their names and states, and what the server wants of it."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, get_run_context
from prefect.exceptions import Pause
from prefect.states import Cancelled, Completed, Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State as PrefectState

    from flows.batch.jobs_file import Ordered
    from flows.batch.runner import State


def in_task(order: Ordered, work: Callable[[], State]) -> State:
    """Do one job's work in a task of its name; Prefect sees it completed, failed (set aside) or cancelled (left).

    Only the run's name goes to the server. The night retries by itself, so that it does the same with no server.
    """
    found: list[State] = []
    stopped: list[BaseException] = []

    @task(name="job", task_run_name=order.name.replace("{", "(").replace("}", ")"), cache_policy=NO_CACHE)
    def job(run: str) -> PrefectState:
        try:
            found.append(work())
        except BaseException as error:
            stopped.append(error)
            return Cancelled(message=f"{run}: {error}")
        if found[0] == "set aside":
            return Failed(message=f"{run} was set aside; freescale show {run} says why")
        made = Completed if found[0] == "done" else Cancelled
        return made(message=f"{run}: {found[0]}")

    job(order.job.run, return_state=True)
    if stopped:
        raise stopped[0]
    return found[0]


class FlowState:
    """What the server wants of this flow run, asked from a thread: go on, hold (paused) or end (suspended, cancelling).

    A server that is away wants nothing new: the night goes on as it was.
    """

    EVERY = 2.0  # seconds

    def __init__(self, stop: threading.Event) -> None:
        context = get_run_context()
        assert isinstance(context, FlowRunContext)
        assert context.flow_run is not None
        self.run, self.stop, self.is_held = context.flow_run.id, stop, False
        self.due = context.flow_run.expected_start_time
        self.suspended: PrefectState | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="flow state", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    def end(self) -> None:
        """Leave a suspended flow the way the engine expects it: it is started again when it is resumed."""
        if self.suspended is not None:
            raise Pause(state=self.suspended)

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._closed.wait(self.EVERY):
                with suppress(Exception):
                    state = client.read_flow_run(self.run).state
                    if state is not None:
                        self._heed(state)

    def _heed(self, state: PrefectState) -> None:
        self.is_held = state.is_paused()
        if state.is_paused() and state.state_details.pause_reschedule:
            self.suspended = state
        if self.suspended or state.is_cancelling() or state.is_final():
            self.stop.set()
