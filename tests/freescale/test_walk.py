"""Walks: relays, spans, descents and shifted noise levels, against the published tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freescale.forward_process import normal
from freescale.schedule import make_schedule
from freescale.walk import descent, pairs_of, relay, shifted, span, walked


def test_a_relay_ends_with_x0(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 10)
    walk = relay(schedule, 6)
    assert walk.timesteps == schedule.timesteps[:6]
    assert walk.sigmas == (*schedule.sigmas[:6], 0.0)
    latents, noise_pred = normal((1, 4, 3, 3), 1, "z"), normal((1, 4, 3, 3), 1, "e")
    after, _ = walk.advance(noise_pred, 5, latents)
    torch.testing.assert_close(after, latents - walk.sigmas[5] * noise_pred, atol=1e-6, rtol=0)
    assert relay(schedule, 10) is schedule


def test_spans_are_the_schedule_in_parts(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 10, "ddim")
    parts = [span(schedule, 0, 4), span(schedule, 4, 7), span(schedule, 7, 10)]
    assert sum((part.timesteps for part in parts), ()) == schedule.timesteps
    assert [part.sigmas[-1] for part in parts] == [0.0, 0.0, schedule.sigmas[-1]]
    assert [part.final_scale for part in parts] == [1.0, 1.0, schedule.final_scale]
    for first, stop in ((3, 3), (-1, 2), (5, 11)):
        with pytest.raises(ValueError, match="span"):
            span(schedule, first, stop)


def test_a_descent_has_equal_strides(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 30)
    walk = descent(schedule, 200.0, 4)
    assert walk.timesteps == (200.0, 150.0, 100.0, 50.0)
    assert walk.sigmas[0] == pytest.approx(0.572, abs=5e-4)
    assert walk.sigmas[-1] == 0.0
    for start, steps in ((0.0, 2), (1000.0, 2), (100.0, 0)):
        with pytest.raises(ValueError, match="descent"):
            descent(schedule, start, steps)


@pytest.mark.parametrize(
    ("left", "gamma", "timestep"), [(200, 1.5, 343), (400, 2.0, 606), (200, 2.0, 395), (100, 3.0, 346), (200, 3.0, 500)]
)
def test_shifts_are_those_of_frecas(scheduler_config: dict[str, Any], left: int, gamma: float, timestep: int) -> None:
    """arXiv:2410.18410: what a level that was left at one timestep is noised to at twice the size."""
    schedule = make_schedule(scheduler_config, 50)
    assert shifted(schedule, left, 2.0, gamma) == pytest.approx(timestep, abs=1)
    assert shifted(schedule, left, 2.0, 0.0) == left
    assert shifted(schedule, left, 2.5, gamma) > shifted(schedule, left, 2.0, gamma)
    assert shifted(schedule, 999, 4.0, 3.0) == 999


def test_a_walk_is_made_again_from_plain_numbers(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 12, "ddim")
    for walk in (relay(schedule, 5), descent(schedule, 300.0, 3), span(schedule, 6, 12)):
        assert walked(schedule, pairs_of(walk)) == walk
