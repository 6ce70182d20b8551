"""`prefect-setup` on a real server: all there after once, nothing doubled after twice, bad input in a sentence."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, Pending, Running
from prefect.utilities.callables import parameter_schema

from flows.deployments import automations
from flows.deployments.automations import AGAIN, SILENT, UNSTARTED
from flows.deployments.compare import compare
from flows.deployments.evaluate import evaluate
from flows.deployments.overnight import overnight
from flows.deployments.render import render
from flows.deployments.restarts import RESTARTS
from flows.deployments.setup import setup
from stages.errors import SpecError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import DeploymentSchedule

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("default")]  # Prefect's own warnings are not ours


def schedules() -> list[DeploymentSchedule]:
    with get_client(sync_client=True) as client:
        return list(client.read_deployment_by_name("overnight/overnight").schedules)


def counts() -> tuple[int, int, int]:
    with get_client(sync_client=True) as client:
        pools = [pool for pool in client.read_work_pools() if pool.name == "gpu-local"]
        return (
            len(pools),
            sum(len(client.read_automations_by_name(name)) for name in (SILENT, UNSTARTED, AGAIN)),
            len(client.read_deployments()),
        )


def empty() -> None:
    """Take away what other tests of this server have set up."""
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for name in (SILENT, UNSTARTED, AGAIN):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
        if any(pool.name == "gpu-local" for pool in client.read_work_pools()):
            client.delete_work_pool("gpu-local")


@pytest.mark.thorough
def test_once_makes_all_and_twice_doubles_nothing(prefect_server: str) -> None:
    server = prefect_server
    empty()
    first = setup(api=server)
    assert counts() == (1, 3, 5)
    assert [line.rsplit(" ", 1)[-1] for line in (*first[:3], first[-1])] == ["made"] * 4
    assert [found.active for found in schedules()] == [False]
    setup("30 20 * * *", "Europe/Vienna", "05:45", api=server)
    setup(limit=3, api=server)  # a schedule once turned on stays
    assert counts() == (1, 3, 5)
    (evening,) = schedules()
    assert (evening.active, evening.schedule.cron, evening.schedule.timezone) == (True, "30 20 * * *", "Europe/Vienna")
    with get_client(sync_client=True) as client:
        night = client.read_deployment_by_name("overnight/overnight")
        assert night.parameters == {"until": "05:45", "zone": "Europe/Vienna", "skip_bad": True}
        assert night.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert night.concurrency_limit == 1 or night.global_concurrency_limit.limit == 1
        assert client.read_work_pool("gpu-local").concurrency_limit == 3
        (automation,) = client.read_automations_by_name(SILENT)
        trigger = automation.trigger
        assert (trigger.posture.value, trigger.within.total_seconds()) == ("Proactive", 90)
        assert trigger.for_each == {"prefect.resource.id"}


@pytest.mark.thorough
def test_a_deployment_made_before_names_the_flow_of_today(prefect_server: str) -> None:
    """A server that knows a flow by the module it was in before: setup changes the deployment and keeps its choices."""
    setup("15 22 * * *", "Europe/Vienna", "04:30", api=prefect_server)
    with get_client(sync_client=True) as client:
        known = client.read_deployment_by_name("overnight/overnight")
        client.create_deployment(
            known.flow_id, known.name, entrypoint="flows.overnight.overnight", parameters=known.parameters,
            schedules=[DeploymentScheduleCreate(schedule=s.schedule, active=s.active) for s in known.schedules],
        )  # fmt: skip
        assert client.read_deployment(known.id).entrypoint == "flows.overnight.overnight"
        setup(api=prefect_server)
        found = client.read_deployment(known.id)
    module, _, name = str(found.entrypoint).rpartition(".")
    assert getattr(importlib.import_module(module), name) is overnight
    assert (found.parameters["until"], found.parameters["zone"]) == ("04:30", "Europe/Vienna")
    (evening,) = found.schedules
    assert (evening.active, evening.schedule.cron) == (True, "15 22 * * *")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cron": "every evening"}, r"cron: 'every evening' is not a schedule, for example"),
        ({"cron": "61 25 * * *"}, r"cron: '61 25 \* \* \*' is not a schedule"),
        ({"zone": "Mars/Base"}, r"zone: 'Mars/Base' is not a time zone"),
        ({"until": "half past six"}, r"until: 'half past six' is not HH:MM"),
        ({"limit": 0}, r"limit: 0 is not 1 or more"),
        (
            {"api": "http://127.0.0.1:9/api"},
            r"prefect: no server answers at http://127.0.0.1:9/api \(.*\); prefect server",
        ),
        ({"api": "nonsense"}, r"prefect: no server answers at nonsense"),
    ],
)
def test_what_cannot_be_is_one_sentence(values: dict[str, object], says: str) -> None:
    before = PREFECT_API_URL.value()
    with pytest.raises(SpecError, match=says) as found:
        setup(**values, patience=0.0)  # type: ignore[arg-type]
    assert "\n" not in str(found.value)
    assert PREFECT_API_URL.value() == before


@pytest.mark.parametrize("flow", [overnight, render, compare, evaluate])
def test_the_server_is_told_how_often_a_run_is_run_again(flow: Flow[..., Any]) -> None:
    """A name that Python cannot resolve in a flow's annotations would leave all its parameters unchecked."""
    shape = parameter_schema(flow).properties["crashed"]
    assert (shape["type"], shape["items"]["format"], shape["maxItems"]) == ("array", "uuid", RESTARTS)


def crash(deployment: UUID, parameters: dict[str, Any]) -> UUID:
    """A run of a deployment that began and crashed, as a server hears of it, twice."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
        for state in (Running(), Crashed(), Crashed(message="told by another")):
            client.set_flow_run_state(run.id, state, force=True)
    return run.id


def successors(deployment: UUID, run: UUID) -> list[dict[str, Any]]:
    """The parameters of the runs that a crashed run is named in."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    return [found.parameters for found in runs if str(run) in found.parameters.get("crashed", [])]


@pytest.mark.thorough
def test_a_crashed_run_is_run_again_with_its_parameters_and_not_for_ever(prefect_server: str) -> None:
    setup(until="05:45", api=prefect_server)
    with get_client(sync_client=True) as client:
        deployments = {name: client.read_deployment_by_name(name).id for name in ("overnight/overnight", "prune/prune")}
    night = deployments["overnight/overnight"]
    given = {"jobs": "a '<b>'.yaml", "options": {"threads": 1}, "defaults": {"prompt": "{{ x }}"}}
    before = [str(uuid4()) for _ in range(RESTARTS)]
    worn, pruned = crash(night, {**given, "crashed": before}), crash(deployments["prune/prune"], {})
    first = crash(night, given)
    second = crash(night, {**given, "crashed": before[1:]})
    patience = time.monotonic() + 60
    while not (successors(night, first) and successors(night, second)):
        assert time.monotonic() < patience, "nothing was run again"
        time.sleep(0.2)
    same = {"until": "05:45", "zone": "Europe/Vienna", "skip_bad": True, **given}
    assert successors(night, first) == [{**same, "crashed": [str(first)]}]
    assert successors(night, second) == [{**same, "crashed": [*before[1:], str(second)]}]
    assert not successors(night, worn)
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(night, parameters={**given, "crashed": [*before, str(worn)]})
    assert not successors(deployments["prune/prune"], pruned)


@pytest.mark.thorough
def test_a_run_that_was_taken_and_never_began_is_crashed(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(automations, "START_SECONDS", 10)  # the least that a server takes
        setup(api=prefect_server)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(client.read_deployment_by_name("prune/prune").id).id
        client.set_flow_run_state(run, Pending())
        patience = time.monotonic() + 60
        while (state := client.read_flow_run(run).state) is None or not state.is_crashed():
            assert time.monotonic() < patience, state
            time.sleep(0.2)
    setup(api=prefect_server)
    assert state.message == "not started for 10 s"
