"""What every solver is given and gives back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Solver: TypeAlias = str
"""The name of a row of `SOLVERS`."""

History: TypeAlias = "tuple[Tensor, ...]"
"""What a solver remembers of the steps before: tensors of the shape of the latents, the newest first."""

SolverStep: TypeAlias = "Callable[[Tensor, Tensor, NoiseLevels, History, Tensor | None], tuple[Tensor, History]]"

PAST = 3  # noise levels before a step that a solver is told


class NoiseLevels(NamedTuple):
    """The noise levels (sigma) around one step."""

    past: tuple[float, ...]  # of up to `PAST` steps before, the newest first; empty at the first step
    current: float
    following: float
    fresh: float = 0.0  # deviation of the noise that the step adds
    signal_before: float = 1.0  # share of the picture one step before, at this one and at the next: 1 - sigma in a
    signal: float = 1.0  # flow model, else 1
    signal_after: float = 1.0

    @property
    def previous(self) -> float | None:
        """One step before; None at the first step."""
        return self.past[0] if self.past else None

    @property
    def down(self) -> float:
        """The level that `fresh` of noise lifts to the following one."""
        return math.sqrt(self.following**2 - self.fresh**2)

    @property
    def log_step(self) -> float:
        """How far log(sigma / signal) falls in this step; infinite from noise alone."""
        return _log_fall(self.current, self.signal, self.following, self.signal_after)

    @property
    def log_step_before(self) -> float:
        """How far log(sigma / signal) fell in the step before, of which there must be one."""
        return _log_fall(self.past[0], self.signal_before, self.current, self.signal)

    @property
    def log_step_second(self) -> float:
        """How far log(sigma / signal) fell in the step before that one, of which there must be one."""
        signal = 1.0 - self.past[1] if self.signal < 1.0 else 1.0
        return _log_fall(self.past[1], signal, self.past[0], self.signal_before)


def _log_fall(sigma: float, signal: float, following: float, signal_after: float) -> float:
    return math.log((sigma * signal_after) / (following * signal)) if signal else math.inf


def with_noise(latents: Tensor, levels: NoiseLevels, noise: Tensor | None) -> Tensor:
    """Return the latents with `levels.fresh` of standard normal noise, added in place; as they are without noise."""
    return latents if noise is None else latents.add_(levels.fresh * noise.to(latents))
