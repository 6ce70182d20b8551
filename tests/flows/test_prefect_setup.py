"""`prefect-setup` on a real server: all there after once, nothing doubled after twice, bad input in a sentence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.settings import PREFECT_API_URL

from flows.deployments.overnight import overnight
from flows.deployments.setup import AUTOMATION, setup
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
        return len(pools), len(client.read_automations_by_name(AUTOMATION)), len(client.read_deployments())


def test_once_makes_all_and_twice_doubles_nothing(prefect_server: str) -> None:
    server = prefect_server
    first = setup(api=server)
    assert counts() == (1, 1, 5)
    assert [line.rsplit(" ", 1)[-1] for line in first[:2]] == ["made", "made"]
    assert [found.active for found in schedules()] == [False]
    setup("30 20 * * *", "Europe/Vienna", "05:45", api=server)
    setup(limit=3, api=server)  # a schedule once turned on stays
    assert counts() == (1, 1, 5)
    (evening,) = schedules()
    assert (evening.active, evening.schedule.cron, evening.schedule.timezone) == (True, "30 20 * * *", "Europe/Vienna")
    with get_client(sync_client=True) as client:
        night = client.read_deployment_by_name("overnight/overnight")
        assert night.parameters == {"until": "05:45", "zone": "Europe/Vienna", "skip_bad": True}
        assert night.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert night.concurrency_limit == 1 or night.global_concurrency_limit.limit == 1
        assert client.read_work_pool("gpu-local").concurrency_limit == 3
        (automation,) = client.read_automations_by_name(AUTOMATION)
        trigger = automation.trigger
        assert (trigger.posture.value, trigger.within.total_seconds()) == ("Proactive", 90)
        assert trigger.for_each == {"prefect.resource.id"}


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
