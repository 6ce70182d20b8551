"""What a render cost, from the manifests of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.plan import Plan
    from storage import ArtifactStore


@dataclass(frozen=True)
class Cost:
    """Of a whole render, from scratch: seconds, and samples through the UNet (guidance counts two, a window one)."""

    seconds: float
    unet_samples: int


def cost(store: ArtifactStore, plan: Plan) -> Cost | None:
    """What making every stage cost; None where one is gone, or went on after a stop and has not all of its time."""
    seconds, samples = 0.0, 0
    for call in plan.calls:
        manifest = store.find(call.key)
        if manifest is None or manifest.seconds is None or manifest.resumed_at:
            return None
        seconds += manifest.seconds
        samples += manifest.counts.get("unet_samples", 0)
    return Cost(seconds, samples)
