"""Walks: the noise levels of one level of a cascade, where they are not those of the whole schedule.

A walk is a `Schedule` with timesteps of its own, in variance-exploding coordinates. Four ways to make one:

* `relay` leaves a level early: the last noise level becomes 0, and an Euler step from sigma to 0 gives x0 itself.
  RectifiedHR and FreCaS hand that x0 to the next level.
* `span` takes some steps of the schedule, and ends at 0.
* `descent` goes from a timestep to 0 in equal strides of timesteps.
* `inversion` goes up through the noise levels of a walk first, from 0, and then down through them. DDIM inversion is
  this: Euler steps upwards. It starts from the clean reference itself, and needs no noise.

A picture enlarged by rho has rho^2 cells for one, so noise of one deviation destroys less of it: `shifted` is the noise
level that keeps the ratio of signal to noise, SNR' = SNR / rho^gamma (FreCaS, arXiv:2410.18410).
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from freescale.schedule import for_solver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale.schedule import Schedule


def relay(schedule: Schedule, stop: int) -> Schedule:
    """Return the steps before `stop`, the last of them to x0; all of them where `stop` is the schedule's length."""
    return schedule if stop == len(schedule) else span(schedule, 0, stop)


def span(schedule: Schedule, first: int, stop: int) -> Schedule:
    """Return steps `first` to `stop` - 1, the last of them to x0. Raises `ValueError` where that is no step.

    With a solver that calls the UNet twice a step, both are rounded to its own steps.
    """
    if not 0 <= first < stop <= len(schedule):
        raise ValueError(f"the span is {first} to {stop}, allowed: at least one of {len(schedule)} steps")
    plain, calls = pairs_of(schedule), schedule.calls
    last = len(plain) - 1 if stop == len(schedule) else max(stop // calls, first // calls + 1)
    ends = plain[-1] if stop == len(schedule) else (0.0, 0.0)
    return walked(schedule, (*plain[first // calls : last], ends))


def descent(schedule: Schedule, start: float, steps: int) -> Schedule:
    """Return `steps` steps at timesteps start * (1 - i / steps), to x0. `start` is a timestep above 0."""
    if steps < 1 or not 0.0 < start <= schedule.num_train_timesteps - 1:
        last = schedule.num_train_timesteps - 1
        raise ValueError(f"a descent from {start} in {steps} steps, allowed: above 0 to {last}, 1 step or more")
    return along(schedule, [start * (1.0 - i / steps) for i in range(steps)])


def inversion(down: Schedule) -> Schedule:
    """Return the walk from sigma = 0 up through the noise levels of a walk that falls, then down again to 0."""
    levels = pairs_of(down)[:-1]
    return walked(down, ((0.0, 0.0), *levels[:0:-1], *levels, (0.0, 0.0)))


def rises(walk: Schedule, i: int) -> bool:
    """Return whether step `i` goes up, to more noise."""
    return walk.sigmas[i + 1] > walk.sigmas[i]


def along(schedule: Schedule, timesteps: Sequence[float]) -> Schedule:
    """Return the walk over falling timesteps, whole or not, to x0."""
    return walked(schedule, (*((t, schedule.sigma_at(t)) for t in timesteps), (0.0, 0.0)))


def shifted(schedule: Schedule, timestep: float, growth: float, gamma: float) -> float:
    """Return the timestep whose noise level is that of `timestep` times growth^(gamma / 2).

    It is the first whole one with at most that ratio of signal to noise; `gamma` 0 gives `timestep` back. The last one
    where none has so little signal.
    """
    if gamma == 0.0 or growth == 1.0:
        return timestep
    wanted = schedule.sigma_at(timestep) * growth ** (gamma / 2.0)
    table = schedule.train_sigmas
    return float(min(bisect.bisect_left(table, wanted), len(table) - 1))


def walked(schedule: Schedule, pairs: Sequence[tuple[float, float]]) -> Schedule:
    """Return the walk of (timestep, sigma) before each step and (0, sigma) after the last, as `pairs_of` gives it.

    A walk that rises has Euler's solver without fresh noise, the only one that is defined upwards from 0.
    """
    if schedule.scales:
        raise ValueError("a walk of a model with a dynamic scale is not known, allowed: models for pictures")
    sigmas = tuple(sigma for _, sigma in pairs)
    has_signal = schedule.init_sigma != schedule.sigmas[0]  # as `make_schedule` has it
    plain = replace(
        schedule,
        timesteps=tuple(timestep for timestep, _ in pairs[:-1]),
        sigmas=sigmas,
        init_sigma=math.sqrt(sigmas[0] ** 2 + 1.0) if has_signal else sigmas[0],
        final_scale=schedule.final_scale if sigmas[-1] else 1.0,
        fresh=(),
        by_time=False,
    )
    if any(after > before for before, after in itertools.pairwise(sigmas)):
        plain = replace(plain, solver="euler", eta=0.0)
    return for_solver(plain)


def pairs_of(walk: Schedule) -> tuple[tuple[float, float], ...]:
    """Return all that tells a walk from the schedule that it was made of, as plain numbers; second calls left out."""
    timesteps, sigmas = walk.timesteps[:: walk.calls], walk.sigmas[:-1][:: walk.calls]
    return (*zip(timesteps, sigmas, strict=True), (0.0, walk.sigmas[-1]))
