"""Where a render is: the level, the step and the seed that a method decides by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from freescale.compute import Compute

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.cascade import Level
    from freescale.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Moment:
    """Where a render is: all that a method may decide by."""

    level: Level
    step: int
    schedule: Schedule
    seed: int
    compute: Compute = field(default_factory=Compute)  # the denoiser's; changes rounding at most
    extra: dict[str, Tensor] = field(default_factory=dict)  # kept from step to step, for methods to fill: `Step.extra`

    @property
    def timestep(self) -> float:
        """Training timestep of this step."""
        return self.schedule.timesteps[self.step]

    @property
    def sigma(self) -> float:
        """Noise level before this step."""
        return self.schedule.sigmas[self.step]

    @property
    def fraction(self) -> float:
        """How far along the schedule, 0 to 1."""
        return self.schedule.fraction(self.step)
