"""What `freescale doctor` says of a Prefect server: all well, and each thing that can be missing, in a sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployments import health
from flows.deployments.automations import AGAIN, SILENT
from flows.deployments.setup import setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.filterwarnings("default")  # Prefect's own warnings are not ours
POOL = "gpu-local"
MADE = "`freescale prefect-setup` makes it"
WORKER = "`prefect worker start --pool gpu-local --limit 1` starts one"


def bad() -> list[tuple[str, str]]:
    return [(what, says) for what, ok, says in health.server_health() if not ok]


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Of a server with all that `prefect-setup` makes, and a worker that was heard just now."""
    setup("30 20 * * *", "Europe/Vienna", api=prefect_server)
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(POOL, "gpu0", heartbeat_interval_seconds=30)
        yield client


@pytest.mark.thorough
@pytest.mark.server
def test_all_is_well(client: SyncPrefectClient) -> None:
    found = list(health.server_health())
    assert [what for what, ok, _ in found if not ok] == []
    said = "\n".join(f"{what} {says}" for what, _, says in found)
    for words in ("answers, version 3.", "telemetry off", "gpu-local", "gpu0 was heard", "overnight/overnight: 30 20 "):
        assert words in said
    assert [what for what, _, _ in found].count("deployment") == 5


@pytest.mark.thorough
@pytest.mark.server
def test_each_thing_that_is_missing_is_a_sentence(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
    silent, again = (client.read_automations_by_name(name)[0] for name in (SILENT, AGAIN))
    client.delete_automation(again.id)
    client.pause_automation(silent.id)
    client.delete_deployment(client.read_deployment_by_name("render/local").id)
    client.update_deployment(client.read_deployment_by_name("compare/compare").id, DeploymentUpdate(paused=True))
    known = client.read_deployment_by_name("prune/prune")
    client.create_deployment(known.flow_id, known.name, entrypoint="flows.prune.prune")
    monkeypatch.setattr(health, "MISSED", 0)
    monkeypatch.setattr(health, "PLANNING", health.PLANNING * 0)
    monkeypatch.setattr(health, "_next", lambda client, deployment: None)
    found = bad()
    client.delete_automation(silent.id)  # what a person switched off stays off
    client.update_deployment(client.read_deployment_by_name("compare/compare").id, DeploymentUpdate(paused=False))
    client.delete_work_pool(POOL)
    without_pool = bad()
    setup(api=str(client.api_url))
    assert [(what, re.sub(r"since \S+ \S+;", "since then;", says)) for what, says in found] == [
        ("work pool", "gpu-local is paused; `prefect work-pool resume gpu-local` lets it run"),
        ("worker", f"gpu0 is silent since then; none is there; {WORKER}"),
        ("automation", f"{SILENT!r} is switched off; `prefect automation resume '{SILENT}'` turns it on"),
        ("automation", f"{AGAIN!r} is not there; {MADE}"),
        ("deployment", f"render/local is not there; {MADE}"),
        ("deployment", "compare/compare is paused; its page in the UI has a switch"),
        ("schedule", "overnight/overnight: 30 20 * * * Europe/Vienna, but the server plans no run; its log says why"),
        ("deployment", "prune/prune runs flows.prune.prune, today flows.deployments.prune.prune; run "
         "`freescale prefect-setup`"),
    ]  # fmt: skip
    assert ("work pool", f"gpu-local is not there; {MADE}") in without_pool


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense"])
def test_a_server_that_does_not_answer_is_one_finding(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        ((what, says),) = bad()
    assert (what, says.startswith(f"none answers at {url} (")) == ("server", True)
    assert "\n" not in says


def test_without_a_server_all_is_well() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert [ok for _, ok, _ in health.server_health()] == [True]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"analytics_enabled": True}, "PREFECT_SERVER_ANALYTICS_ENABLED=false"),
        ({"concurrency": {"lease_storage": "prefect.server.concurrency.lease_storage.memory"}}, "storage.filesystem"),
    ],
)
def test_a_server_with_the_settings_of_another_folder(settings: dict[str, Any], says: str) -> None:
    told = [health._telemetry({"server": settings}), health._leases({"server": settings})]
    ((_, _, sentence),) = [found for found in told if not found[1]]
    assert says in sentence


def test_a_server_of_another_version() -> None:
    assert not health._version("http://127.0.0.1:4200/api", "2.20.0")[1]
