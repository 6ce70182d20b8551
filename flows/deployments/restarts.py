"""What a flow run knows of the crashed runs whose place it takes.

The automation of `prefect-setup` runs a deployment again when its run crashed, with the same parameters and the ids of
the crashed runs in `crashed`. The server checks parameters against the flow's schema, so that it refuses the run after
`RESTARTS` crashes: also where the flow cannot even start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from prefect import get_client
from prefect.exceptions import ObjectNotFound
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

RESTARTS = 10  # three for a job that kills its process, which the home then sets aside; so for three such jobs

Crashed = Annotated[
    tuple[UUID, ...],
    Field(max_length=RESTARTS, description="The runs that crashed before this one, oldest first. Leave it empty."),
]


def log_crashes(log: Any, crashed: Sequence[UUID]) -> None:
    """Log whose place a run takes, where it takes one."""
    if crashed:
        log.warning("goes on where the run %s crashed; restart %s of %s", crashed[-1], len(crashed), RESTARTS)


def first_due(crashed: Sequence[UUID], due: datetime | None) -> datetime | None:
    """When the first of the crashed runs was due, so that its window holds for the last one too; else `due`.

    A run that the server has forgotten does not count.
    """
    with get_client(sync_client=True) as client:
        for run in crashed:
            try:
                return client.read_flow_run(run).expected_start_time
            except ObjectNotFound:
                continue
    return due
