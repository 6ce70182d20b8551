"""`freescale prefect-setup`: makes what the deployments need in the database of a Prefect server.

That is the work pool, the deployments of `prefect.yaml`, and automations that crash runs whose process is gone and run
crashed ones again. Run again, it updates them, their entrypoints too, and makes none twice. Schedules and parameters
that a person changed on the server stay.
"""

from __future__ import annotations

import importlib
import importlib.resources
import logging
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings, update_current_profile
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows.batch.notify import check_hook
from flows.batch.window import Window, zone_of
from flows.deployments.automations import HEARTBEAT_SECONDS, crash_the_dead, run_again
from flows.home import Home
from stages.errors import SpecError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

log = logging.getLogger(__name__)
API = "http://127.0.0.1:4200/api"
RESTARTED = ("local", "evaluate", "compare", "overnight")  # by entry of `prefect.yaml`: run again when a run crashed


def setup(
    cron: str | None = None,
    zone: str | None = None,
    until: str | None = None,
    notify: str | None = None,
    limit: int | None = None,
    api: str | None = None,
    patience: float = 120.0,
) -> list[str]:
    """Make or update everything on the server; return a line for each thing.

    With `cron` the deployment `overnight` gets this schedule in the time zone `zone`, switched on; `until` and `notify`
    become its parameters. `limit` is the number of runs at a time over all workers. A server that is still starting is
    waited for, at most `patience` seconds. Raises `SpecError` for a value that is refused, before anything is made, and
    where no server answers.
    """
    schedule = _schedule(cron, zone)
    given = _parameters(until, zone, notify)
    if limit is not None and limit < 1:
        raise SpecError(f"limit: {limit} is not 1 or more")
    definition, folder = read_definition()
    lines = []
    url = api or PREFECT_API_URL.value() or API
    _wait_for(url, patience)
    if PREFECT_API_URL.value() != url and api is None:
        update_current_profile({PREFECT_API_URL: url})
        lines.append(f"PREFECT_API_URL is {url} from now on")
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        pool = definition["definitions"]["work_pools"]["gpu"]["name"]
        lines += [_pool(client, pool, limit), *crash_the_dead(client)]
        restarted = []
        for entry in definition["deployments"]:
            is_overnight = entry["name"] == "overnight"
            when, parameters = (schedule, given) if is_overnight else (None, {})
            deployment, line = _deployment(client, entry, folder, when, parameters)
            lines.append(line)
            if entry["name"] in RESTARTED:
                restarted.append(deployment)
        lines.append(run_again(client, restarted))
    return lines


def read_definition() -> tuple[dict[str, Any], Path]:
    """What `prefect.yaml` says, and the folder that runs of its deployments work in.

    A checkout has the file beside the package `flows`, and its runs work there. A wheel has a copy beside this module;
    those runs work in the home, because relative names should not mean files among the installed packages.
    """
    beside = Path(__file__).parents[2] / "prefect.yaml"
    if beside.is_file():
        return yaml.safe_load(beside.read_text(encoding="utf-8")), beside.parent
    inside = importlib.resources.files("flows.deployments") / "prefect.yaml"
    home = Home.folder().absolute()
    home.mkdir(parents=True, exist_ok=True)
    return yaml.safe_load(inside.read_text(encoding="utf-8")), home


def _schedule(cron: str | None, zone: str | None) -> CronSchedule | None:
    """A checked schedule. Raises `SpecError`."""
    if zone is not None:
        zone_of(zone)
    if cron is None:
        return None
    try:
        return CronSchedule(cron=cron, timezone=zone or "UTC")
    except ValueError:
        raise SpecError(f"cron: {cron!r} is not a schedule, for example '0 21 * * *', every evening at nine") from None


def _parameters(until: str | None, zone: str | None, notify: str | None) -> dict[str, str]:
    """The parameters of `overnight` that were given, checked. Raises `SpecError`."""
    Window.of(until, zone)
    values = {"until": until, "zone": zone, "notify": check_hook(notify)}
    return {name: value for name, value in values.items() if value is not None}


def _wait_for(url: str, patience: float) -> None:
    """Until a server answers. Raises `SpecError` where none does."""
    last, waits = time.monotonic() + patience, False
    while True:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
                return
        except (OSError, ValueError, urllib.error.HTTPError) as error:
            if time.monotonic() >= last or isinstance(error, ValueError):
                raise SpecError(
                    f"prefect: no server answers at {url} ({getattr(error, 'reason', error)}); "
                    "prefect server start starts one"
                ) from None
        if not waits:
            log.warning("waiting for a server at %s; its first start may take a minute", url)
        waits = True
        time.sleep(0.5)


def _pool(client: SyncPrefectClient, name: str, limit: int | None) -> str:
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
        client.create_work_pool(pool)
        return f"work pool {name}: made"
    if found.type != "process":
        raise SpecError(f"prefect: the work pool {name!r} is of type {found.type!r}, needed: 'process'")
    if limit is not None and limit != found.concurrency_limit:
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))
        return f"work pool {name}: at most {limit} runs at a time"
    return f"work pool {name}: there"


def _deployment(
    client: SyncPrefectClient,
    entry: dict[str, Any],
    folder: Path,
    schedule: CronSchedule | None,
    given: dict[str, str],
) -> tuple[UUID, str]:
    module, _, name = entry["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    label = f"{flow.name}/{entry['name']}"
    try:
        there: DeploymentResponse | None = client.read_deployment_by_name(label)
    except ObjectNotFound:
        there = None
    parameters = entry.get("parameters", {}) if there is None else there.parameters
    deployment = client.create_deployment(  # where there is one of this name already, the server changes that
        client.create_flow(flow),
        entry["name"],
        entrypoint=entry["entrypoint"],
        description=entry["description"],
        work_pool_name=entry["work_pool"]["name"],
        parameters={**parameters, **given},
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=_schedules(entry, there, schedule),
        concurrency_limit=entry.get("concurrency_limit"),
        job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}},
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
    )
    return deployment, f"deployment {label}: {'made' if there is None else 'there'}{_when(client, label)}"


def _schedules(
    entry: dict[str, Any], there: DeploymentResponse | None, wanted: CronSchedule | None
) -> list[DeploymentScheduleCreate]:
    """The one asked for, else those on the server, else the file's."""
    if wanted is not None:
        return [DeploymentScheduleCreate(schedule=wanted, active=True, slug=entry["schedules"][0]["slug"])]
    if there is not None:
        return [
            DeploymentScheduleCreate(schedule=s.schedule, active=s.active, slug=s.slug, parameters=s.parameters)
            for s in there.schedules
        ]
    return [
        DeploymentScheduleCreate(
            schedule=CronSchedule(cron=s["cron"], timezone=s["timezone"]), active=s["active"], slug=s["slug"]
        )
        for s in entry.get("schedules", [])
    ]


def _when(client: SyncPrefectClient, label: str) -> str:
    """When it starts by itself."""
    text = ""
    for found in client.read_deployment_by_name(label).schedules:
        assert isinstance(found.schedule, CronSchedule)
        state = "scheduled" if found.active else "not scheduled; --cron does"
        text += f", {state}: {found.schedule.cron} {found.schedule.timezone}"
    return text
