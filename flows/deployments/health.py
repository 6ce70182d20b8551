"""What `freescale doctor` looks at on a Prefect server: whether it, a worker and what `prefect-setup` made are well.

Each finding is what was looked at, whether it is well, and a sentence.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.deployments.automations import AGAIN, SILENT, UNSTARTED
from flows.deployments.setup import read_definition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

Found = tuple[str, bool, str]
TIMEOUT_SECONDS = 5.0
MISSED = 3  # heartbeats after which a worker counts as silent
LATELY = timedelta(days=7)  # a worker that was silent for longer is no longer named
PLANNING = timedelta(minutes=3)  # a server plans the runs of a new schedule within a minute
SETUP = "freescale prefect-setup"
MADE = "`freescale prefect-setup` makes it"


def server_health() -> Iterator[Found]:
    """Look at the server that `PREFECT_API_URL` names; one finding says so where none is named or none answers."""
    url = PREFECT_API_URL.value()
    if url is None:
        yield "server", True, "PREFECT_API_URL names none; only a schedule needs one"
        return
    try:
        with httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_SECONDS) as plain:
            plain.get("/health").raise_for_status()
            version, settings = plain.get("/admin/version").json(), plain.get("/admin/settings").json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield "server", False, f"none answers at {url} ({error}); docs/how-to/run-with-prefect.md starts one"
        return
    yield _version(url, str(version))
    yield _telemetry(settings)
    yield _leases(settings)
    with get_client(sync_client=True) as client:
        entries, _ = read_definition()
        yield from _pool(client, entries["definitions"]["work_pools"]["gpu"]["name"])
        yield from (_automation(client, name) for name in (SILENT, UNSTARTED, AGAIN))
        for entry in entries["deployments"]:
            yield from _deployment(client, entry)


def _version(url: str, version: str) -> Found:
    same = version.split(".")[:2] == prefect.__version__.split(".")[:2]
    text = f"{url} answers, version {version}"
    return "server", same, text if same else f"{text}, here {prefect.__version__}: install one version on both sides"


def _telemetry(settings: dict[str, Any]) -> Found:
    """Whether the server reports its use; the settings of the folder that it was started in do not hold elsewhere."""
    server = settings.get("server", {})
    if server.get("analytics_enabled"):
        return "telemetry", False, "on; start the server with PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1"
    return "telemetry", True, "off"


def _leases(settings: dict[str, Any]) -> Found:
    """Where the server keeps who holds a place in a concurrency limit: in memory, a restart forgets who is gone."""
    storage = str(settings.get("server", {}).get("concurrency", {}).get("lease_storage"))
    if storage.endswith(".memory"):
        name = storage.replace(".memory", ".filesystem")
        return "leases", False, f"in memory; start the server with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={name}"
    return "leases", True, storage.rpartition(".")[2]


def _pool(client: SyncPrefectClient, name: str) -> Iterator[Found]:
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        yield "work pool", False, f"{name} is not there; {MADE}"
        return
    if pool.is_paused:
        yield "work pool", False, f"{name} is paused; `prefect work-pool resume {name}` lets it run"
    else:
        limit = "any number of" if pool.concurrency_limit is None else f"at most {pool.concurrency_limit}"
        yield "work pool", True, f"{name}, {limit} runs at a time"
    yield _workers(client, name)


def _workers(client: SyncPrefectClient, pool: str) -> Found:
    """Which workers are there, and since when others are silent."""
    now = datetime.now(UTC)
    there, silent = [], []
    for worker in client.read_workers_for_work_pool(pool):
        seen = worker.last_heartbeat_time
        if seen is None or now - seen > LATELY:
            continue
        if now - seen <= MISSED * timedelta(seconds=worker.heartbeat_interval_seconds or 30):
            there.append(f"{worker.name} was heard {(now - seen).total_seconds():.0f} s ago")
        else:
            silent.append(f"{worker.name} is silent since {seen.astimezone().isoformat(' ', 'seconds')}")
    start = f"`prefect worker start --pool {pool} --limit 1` starts one"
    return "worker", bool(there), "; ".join([*there, *silent, *([] if there else [f"none is there; {start}"])])


def _automation(client: SyncPrefectClient, name: str) -> Found:
    found = client.read_automations_by_name(name)
    if not found:
        return "automation", False, f"{name!r} is not there; {MADE}"
    if not found[0].enabled:
        return "automation", False, f"{name!r} is switched off; `prefect automation resume '{name}'` turns it on"
    return "automation", True, name


def _deployment(client: SyncPrefectClient, entry: dict[str, Any]) -> Iterator[Found]:
    """A deployment, and when it starts by itself."""
    label = f"{entry['entrypoint'].rpartition('.')[2]}/{entry['name']}"
    try:
        found = client.read_deployment_by_name(label)
    except ObjectNotFound:
        yield "deployment", False, f"{label} is not there; {MADE}"
        return
    if found.entrypoint != entry["entrypoint"]:
        yield "deployment", False, f"{label} runs {found.entrypoint}, today {entry['entrypoint']}; run `{SETUP}`"
    elif found.paused:
        yield "deployment", False, f"{label} is paused; its page in the UI has a switch"
    else:
        yield "deployment", True, label
    for each in found.schedules:
        when = each.schedule
        cron = f"{label}: {f'{when.cron} {when.timezone}' if isinstance(when, CronSchedule) else when}"
        if not each.active:
            yield "schedule", True, f"{cron}, switched off; `{SETUP} --cron` turns it on"
        elif (due := _next(client, found.id)) is not None:
            yield "schedule", True, f"{cron}, next {due.astimezone().isoformat(' ', 'minutes')}"
        elif each.created is not None and datetime.now(UTC) - each.created < PLANNING:
            yield "schedule", True, f"{cron}, new"
        else:
            yield "schedule", False, f"{cron}, but the server plans no run; its log says why"


def _next(client: SyncPrefectClient, deployment: UUID) -> datetime | None:
    """When the next run is due; a run that is late was due in the past."""
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=scheduled),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return runs[0].expected_start_time if runs else None
