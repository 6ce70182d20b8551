"""Solvers: how one step takes noise away. A solver is one function, and one row of `SOLVERS`.

Latents z = x0 + sigma * n are in variance-exploding coordinates. A function gets the noise that the model predicts,
the latents, the noise levels around the step, what it returned to remember at the step before, and fresh noise; it
returns the latents at the next noise level and what it remembers.
"""

from __future__ import annotations

from freescale.solvers.step import History, NoiseLevels, Solver, SolverStep
from freescale.solvers.table import SOLVERS, SolverTraits, check_solver

__all__ = ["SOLVERS", "History", "NoiseLevels", "Solver", "SolverStep", "SolverTraits", "check_solver"]
