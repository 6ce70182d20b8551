"""The table of solvers: each with its function and what a schedule must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from freescale.solvers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc
from freescale.solvers.euler import euler
from freescale.solvers.lms import lms
from freescale.solvers.two_calls import dpm_2, dpmpp_2s, heun

if TYPE_CHECKING:
    from freescale.solvers.step import Solver, SolverStep

Middle = Literal["end", "down", "between"]
Noise = Literal["ancestral", "all", "tcd"]


@dataclass(frozen=True)
class SolverTraits:
    """A solver's function and what a schedule must know of it."""

    step: SolverStep
    eta: Literal["none", "free", "one"] = "none"  # share of ancestral noise: 0, as asked (0 to 1), or 1
    usual_eta: float = 0.0  # where eta is free and none is asked for
    unit_variance: bool = False  # its own latents have it, so the first ones here have deviation sqrt(sigma^2 + 1)
    ends_at_first_timestep: bool | None = False  # and not at sigma = 0; None: with `set_alpha_to_one=False`
    remembers: int = 0  # most tensors in its history
    noise: Noise = "ancestral"  # tcd: to the level of (1 - eta) of the next timestep; all: to sigma = 0
    flow: bool = False  # whether it takes the steps of a flow model
    middle: Middle | None = None  # None: one call of the UNet a step; else the noise level of the second call: that of
    # the next step, or halfway (of log sigma) to it (`between`, where noise is added too) or to where noise lifts it

    @property
    def calls(self) -> int:
        """Calls of the UNet a step."""
        return 1 if self.middle is None else 2


SOLVERS: dict[Solver, SolverTraits] = {
    "euler": SolverTraits(euler, flow=True),
    "ddim": SolverTraits(euler, eta="free", unit_variance=True, ends_at_first_timestep=None),
    "euler_ancestral": SolverTraits(euler, eta="one"),
    "dpmpp_2m": SolverTraits(dpmpp_2m, unit_variance=True, remembers=1, flow=True),
    "dpmpp_2m_sde": SolverTraits(dpmpp_2m_sde, eta="one", unit_variance=True, remembers=1),
    "dpmpp_3m_sde": SolverTraits(dpmpp_3m_sde, eta="one", unit_variance=True, remembers=2),
    "dpmpp_2s_ancestral": SolverTraits(dpmpp_2s, eta="one", remembers=1, middle="down"),
    "dpmpp_sde": SolverTraits(dpmpp_2s, eta="one", remembers=1, middle="between"),
    "unipc": SolverTraits(unipc, unit_variance=True, remembers=2, flow=True),
    "heun": SolverTraits(heun, remembers=1, middle="end", flow=True),
    "dpm_2": SolverTraits(dpm_2, remembers=1, middle="down"),
    "dpm_2_ancestral": SolverTraits(dpm_2, eta="one", remembers=1, middle="down"),
    "lms": SolverTraits(lms, remembers=3),
    "lcm": SolverTraits(euler, eta="one", unit_variance=True, noise="all"),
    "tcd": SolverTraits(euler, eta="free", usual_eta=0.3, unit_variance=True, ends_at_first_timestep=True, noise="tcd"),
}


def check_solver(solver: str, eta: float) -> None:
    """Raise `ValueError` for an unknown solver, or a share of ancestral noise `eta` that it does not take."""
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}, allowed: {', '.join(SOLVERS)}")
    if not 0.0 <= eta <= 1.0 or (eta and SOLVERS[solver].eta == "none"):
        free = [name for name, row in SOLVERS.items() if row.eta == "free"]
        raise ValueError(f"eta is {eta} with {solver}, allowed: 0 to 1 with {' and '.join(free)}, 0 with {solver}")
