"""The `prune` deployment: `freescale prune` on a schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.home import Home
from flows.rendering.prune import needless, parse_age, parse_max_size
from flows.rendering.prune import prune as delete_all


@flow(name="prune")
def prune(older_than: str = "7d", max_size: str | None = None, delete: bool = False) -> dict[str, Any]:
    """Count what may be deleted, and with `delete` delete it. Returns the number of things and their bytes."""
    home, age = Home.find(), parse_age(older_than)
    most = None if max_size is None else parse_max_size(max_size)
    found = needless(home, age, most=most)
    if delete:
        found, _ = delete_all(home, found, needless(home, age, most=most))
    result = {"deleted": delete, "count": len(found), "bytes": sum(one.bytes for one in found)}
    get_run_logger().info("%s", result)
    return result
