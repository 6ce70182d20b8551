"""The automations that `prefect-setup` makes: they end runs whose process is gone, and run crashed ones again.

A worker that was killed, or whose machine was lost, leaves its run "Running" or "Pending" for ever. The run keeps its
place in the deployment's concurrency limit, and the next night would wait for it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

SILENT = "freescale: crash runs without a heartbeat"
UNSTARTED = "freescale: crash runs that do not start"
AGAIN = "freescale: run crashed runs again"
HEARTBEAT_SECONDS, SILENCE_SECONDS = 30, 90  # without a setting, a run sends a heartbeat only every 180 s
START_SECONDS = 300  # from the worker that takes a run to the flow's first line; an idle machine needs 10
AGAIN_SECONDS = 10  # before a crashed run is run again: memory is free by then
REPORTS_SECONDS = 60  # one death is reported by the run's process, by its worker and by the silence, within this time
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
WAITS = ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot")
SAME_PARAMETERS = (
    "{{ dict(flow_run.parameters, crashed=flow_run.parameters.get('crashed', []) + [flow_run.id | string]) | tojson }}"
)


def crash_the_dead(client: SyncPrefectClient) -> list[str]:
    """Have the server crash runs that are silent, and runs that do not start; return a line for each automation."""
    silent = _crash(
        SILENT,
        f"No heartbeat for {SILENCE_SECONDS} s: the run's worker was killed, or its machine was lost.",
        f"no heartbeat for {SILENCE_SECONDS} s",
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *_events(ENDS)},
        seconds=SILENCE_SECONDS,
    )
    unstarted = _crash(
        UNSTARTED,
        f"Pending for {START_SECONDS} s: the worker that took the run was killed before the run began.",
        f"not started for {START_SECONDS} s",
        after={"prefect.flow-run.Pending"},
        expect=_events(("Running", *WAITS, *ENDS)),
        seconds=START_SECONDS,
    )
    return [_make(client, silent), _make(client, unstarted)]


def run_again(client: SyncPrefectClient, deployments: Iterable[UUID]) -> str:
    """Have the server run these deployments again when a run of theirs crashed; return a line.

    The new run has the parameters of the crashed one, which `restarts.py` bounds.
    """
    resources = [f"prefect.deployment.{deployment}" for deployment in deployments]
    wanted = AutomationCore(
        name=AGAIN,
        description="Runs the deployment again, with the same parameters. The store says what is done already.",
        enabled=True,
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "deployment", "prefect.resource.id": resources},
            for_each={"prefect.resource.id"},
            expect=_events(("Crashed",)),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=REPORTS_SECONDS),
        ),
        actions=[
            RunDeployment(
                source="inferred",
                parameters={
                    "__prefect_kind": "json",
                    "value": {"__prefect_kind": "jinja", "template": SAME_PARAMETERS},
                },
                schedule_after=timedelta(seconds=AGAIN_SECONDS),
            )
        ],
    )
    return _make(client, wanted)


def _crash(
    name: str, description: str, message: str, after: set[str], expect: set[str], seconds: int
) -> AutomationCore:
    """An automation that crashes a run when `seconds` pass after one event of `after` without one of `expect`."""
    return AutomationCore(
        name=name,
        description=description,
        enabled=True,
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after=after,
            expect=expect,
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def _events(states: Iterable[str]) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


def _make(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Make an automation, or change the one of its name; one that a person switched off stays off."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return f"automation {wanted.name!r}: made"
    client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))
    return f"automation {wanted.name!r}: there"
