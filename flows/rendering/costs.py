"""What a render cost, from the manifests of its stages and the attempts at its run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flows.rendering.live import last_sign

if TYPE_CHECKING:
    from flows.home import Home
    from stages.plan import Plan
    from storage import ArtifactStore, RunRecord


@dataclass(frozen=True)
class Cost:
    """The cost of a whole render: seconds, and the samples (items of a batch) that went through the UNet."""

    seconds: float
    unet_samples: int


def cost(store: ArtifactStore, plan: Plan) -> Cost | None:
    """The cost of every stage; None where one is not in the store, or went on after a stop and lost its first time."""
    seconds, samples = 0.0, 0
    for call in plan.calls:
        manifest = store.find(call.key)
        if manifest is None or manifest.seconds is None or manifest.resumed_at:
            return None
        seconds += manifest.seconds
        samples += manifest.counts.get("unet_samples", 0)
    return Cost(seconds, samples)


def seconds_spent(home: Home, plan: Plan, record: RunRecord) -> float:
    """The seconds of all attempts at a run, also of those that came to nothing.

    An attempt whose process died counts up to its last sign of life: a stage that it made, or its progress file.
    """
    manifests = (home.store.find(call.key) for call in plan.calls)
    signs = [manifest.created for manifest in manifests if manifest is not None]
    if (sign := last_sign(home, record.run)) is not None:
        signs.append(sign.at)
    total = 0.0
    after = [*(attempt.started for attempt in record.attempts[1:]), datetime.now(UTC)]
    for attempt, until in zip(record.attempts, after, strict=True):
        seen = (sign for sign in signs if attempt.started <= sign <= until)
        end = attempt.finished or max(seen, default=attempt.started)
        total += (end - attempt.started).total_seconds()
    return total
