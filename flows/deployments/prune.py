"""The `prune` deployment: the command line's own, for a schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.home import Home
from flows.rendering.prune import needless, parse_age, parse_bytes
from flows.rendering.prune import prune as delete_all


@flow(name="prune")
def prune(older_than: str = "7d", max_size: str | None = None, delete: bool = False) -> dict[str, Any]:
    """Count what may go, and with `delete` delete it. Returns number and bytes."""
    home, age = Home.find(), parse_age(older_than)
    most = None if max_size is None else parse_bytes(max_size)
    found = needless(home, age, most=most)
    if delete:
        found, _ = delete_all(home, found, needless(home, age, most=most))
    told = {"deleted": delete, "count": len(found), "bytes": sum(one.bytes for one in found)}
    get_run_logger().info("%s", told)
    return told
