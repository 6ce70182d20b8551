"""Walks: the noise levels of one level of a cascade, where they are not those of the whole schedule.

A walk is a `Schedule` with timesteps of its own, in variance-exploding coordinates. Three ways to make one:

* `relay` leaves a level early: the last noise level becomes 0, and an Euler step from sigma to 0 gives x0 itself.
  RectifiedHR and FreCaS hand that x0 to the next level.
* `span` takes some steps of the schedule, and ends at 0.
* `descent` goes from a timestep to 0 in equal strides of timesteps.

A picture enlarged by rho has rho^2 cells for one, so noise of one deviation destroys less of it: `shifted` is the noise
level that keeps the ratio of signal to noise, SNR' = SNR / rho^gamma (FreCaS, arXiv:2410.18410).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale.schedule import Schedule


def relay(schedule: Schedule, stop: int) -> Schedule:
    """Return the first `stop` steps of a schedule, the last of them to x0; all of it where `stop` is its length."""
    return schedule if stop == len(schedule) else span(schedule, 0, stop)


def span(schedule: Schedule, first: int, stop: int) -> Schedule:
    """Return steps `first` to `stop` - 1, the last of them to x0. Raises `ValueError` where that is no step."""
    if not 0 <= first < stop <= len(schedule):
        raise ValueError(f"the span is {first} to {stop}, allowed: at least one of {len(schedule)} steps")
    ends = schedule.sigmas[stop] if stop == len(schedule) else 0.0
    return _walk(schedule, schedule.timesteps[first:stop], (*schedule.sigmas[first:stop], ends))


def descent(schedule: Schedule, start: float, steps: int) -> Schedule:
    """Return `steps` steps at timesteps start * (1 - i / steps), to x0. `start` is a timestep above 0."""
    if steps < 1 or not 0.0 < start <= schedule.num_train_timesteps - 1:
        last = schedule.num_train_timesteps - 1
        raise ValueError(f"a descent from {start} in {steps} steps, allowed: above 0 to {last}, 1 step or more")
    timesteps = tuple(start * (1.0 - i / steps) for i in range(steps))
    return _walk(schedule, timesteps, (*(schedule.sigma_at(t) for t in timesteps), 0.0))


def along(schedule: Schedule, timesteps: Sequence[float]) -> Schedule:
    """Return the walk over falling timesteps, whole or not, to x0."""
    return _walk(schedule, tuple(timesteps), (*(schedule.sigma_at(t) for t in timesteps), 0.0))


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
    """Return the walk of (timestep, sigma) before each step and (0, sigma) after the last, as `pairs_of` gives it."""
    return _walk(schedule, tuple(t for t, _ in pairs[:-1]), tuple(sigma for _, sigma in pairs))


def pairs_of(walk: Schedule) -> tuple[tuple[float, float], ...]:
    """Return all that tells a walk from the schedule that it was made of, as plain numbers."""
    return tuple(zip((*walk.timesteps, 0.0), walk.sigmas, strict=True))


def _walk(schedule: Schedule, timesteps: tuple[float, ...], sigmas: tuple[float, ...]) -> Schedule:
    if schedule.scales:
        raise ValueError("a walk of a model with a dynamic scale is not known, allowed: models for pictures")
    has_signal = schedule.init_sigma != schedule.sigmas[0]  # as `make_schedule` has it
    return replace(
        schedule,
        timesteps=timesteps,
        sigmas=sigmas,
        init_sigma=math.sqrt(sigmas[0] ** 2 + 1.0) if has_signal else sigmas[0],
        final_scale=schedule.final_scale if sigmas[-1] else 1.0,
    )
