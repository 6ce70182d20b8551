"""Solvers: how one step takes noise away. A solver is one function, and one row of `SOLVERS`.

Latents z = x0 + sigma * n are in variance-exploding coordinates. A function gets the noise that the model predicts,
the latents, the noise levels around the step, what it returned to remember at the step before, and fresh noise; it
returns the latents at the next noise level and what it remembers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Solver: TypeAlias = str
"""The name of a row of `SOLVERS`."""

History: TypeAlias = "tuple[Tensor, ...]"
"""What a solver remembers of the steps before: tensors of the shape of the latents."""

SolverStep: TypeAlias = "Callable[[Tensor, Tensor, NoiseLevels, History, Tensor | None], tuple[Tensor, History]]"


class NoiseLevels(NamedTuple):
    """The noise levels (sigma) around one step."""

    previous: float | None  # one step before; None at the first step
    current: float
    following: float
    fresh: float = 0.0  # deviation of the noise that the step adds


def euler(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take an Euler step to the noise level that `levels.fresh` of noise lifts to the next one.

    Without fresh noise it is the plain Euler step, which is DDIM with eta = 0 (arXiv:2010.02502). `noise` is standard
    normal, and needed where there is fresh noise.
    """
    down = math.sqrt(levels.following**2 - levels.fresh**2)
    latents = latents + (down - levels.current) * noise_pred
    return (latents if noise is None else latents.add_(levels.fresh * noise.to(latents))), ()


def dpmpp_2m(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), and remember the denoised latents.

    It is of first order at the first step, where nothing is remembered, and at the last. It adds no noise.
    """
    sigma, following = levels.current, levels.following
    denoised = latents - sigma * noise_pred
    if following == 0.0:
        return denoised, (denoised,)
    h = math.log(sigma / following)
    extrapolated = denoised
    if history and levels.previous is not None:
        ratio = math.log(levels.previous / sigma) / h
        extrapolated = denoised + (denoised - history[0].to(denoised)) / (2.0 * ratio)
    return (following / sigma) * latents - math.expm1(-h) * extrapolated, (denoised,)


@dataclass(frozen=True)
class SolverTraits:
    """A solver's function and what a schedule must know of it."""

    step: SolverStep
    eta: Literal["none", "free", "one"] = "none"  # share of ancestral noise: 0, as asked (0 to 1), or 1
    unit_variance: bool = False  # its own latents have it, so the first ones here have deviation sqrt(sigma^2 + 1)
    ends_at_first_timestep: bool = False  # with `set_alpha_to_one=False`, and not at sigma = 0
    remembers: int = 0  # tensors in its history


SOLVERS: dict[Solver, SolverTraits] = {
    "euler": SolverTraits(euler),
    "ddim": SolverTraits(euler, eta="free", unit_variance=True, ends_at_first_timestep=True),
    "euler_ancestral": SolverTraits(euler, eta="one"),
    "dpmpp_2m": SolverTraits(dpmpp_2m, unit_variance=True, remembers=1),
}


def check_solver(solver: str, eta: float) -> None:
    """Raise `ValueError` for an unknown solver, or a share of ancestral noise `eta` that it does not take."""
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}, allowed: {', '.join(SOLVERS)}")
    if not 0.0 <= eta <= 1.0 or (eta and SOLVERS[solver].eta == "none"):
        free, none = ([name for name, row in SOLVERS.items() if row.eta == kind] for kind in ("free", "none"))
        allowed = f"0 to 1 with {' and '.join(free)}, 0 with {' and '.join(none)}"
        raise ValueError(f"eta is {eta} with {solver}, allowed: {allowed}")
