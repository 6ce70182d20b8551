"""A job of a night as a Prefect task, so that it is seen by its name and in its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Completed, Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State as PrefectState

    from flows.batch import State
    from flows.jobs import Ordered


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
