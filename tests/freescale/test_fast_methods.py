"""Methods with few steps at the last size: their walks, guidance and bands as published."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import METHODS, Direct, Draft, FreCaS, Method, RectifiedHR, ScaleDiff, Swift
from freescale.moment import Moment
from freescale.schedule import make_schedule
from freescale.structure import low_band
from tests.toys import level_at

ONE, TWO, FOUR, EIGHT = (1024, 1024), (2048, 2048), (4096, 4096), (8192, 8192)


def lengths(method: Method, target: tuple[int, int], config: dict[str, Any], steps: int = 50) -> list[int]:
    """Steps at each size."""
    schedule, sizes = make_schedule(config, steps), method.sizes(target, ONE)
    return [len(method.walk(schedule, level, sizes)) for level in range(len(sizes))]


@pytest.mark.parametrize(
    ("method", "target", "steps"),
    [
        (RectifiedHR(), TWO, [40, 10]),
        (RectifiedHR(first=0.6), TWO, [30, 20]),
        (RectifiedHR(), FOUR, [40, 7, 3]),
        (RectifiedHR(step_power=1.0), FOUR, [40, 5, 5]),
        (FreCaS(), TWO, [40, 10]),
        (FreCaS(), FOUR, [30, 5, 15]),
        (FreCaS(), EIGHT, [30, 5, 5, 15]),
        (Swift(), TWO, [40, 8]),
        (Swift(), FOUR, [40, 8]),
        (Swift(), EIGHT, [40, 8, 8]),
        (Draft(), FOUR, [40, 2]),
    ],
    ids=str,
)
def test_steps_at_each_size(method: Method, target: Any, steps: list[int], scheduler_config: dict[str, Any]) -> None:
    assert lengths(method, target, scheduler_config) == steps


def test_sizes_of_rectifiedhr_grow_by_equal_steps() -> None:
    assert RectifiedHR().sizes(FOUR, ONE) == (ONE, (2560, 2560), FOUR)
    assert RectifiedHR().sizes((2048, 4096), (768, 1536)) == ((768, 1536), (1408, 2816), (2048, 4096))
    assert RectifiedHR(levels=4).sizes(FOUR, ONE)[1:3] == (TWO, (3072, 3072))


def test_the_parts_of_rectifiedhr_are_one_schedule(scheduler_config: dict[str, Any]) -> None:
    schedule, sizes = make_schedule(scheduler_config, 50, "ddim"), RectifiedHR().sizes(FOUR, ONE)
    walks = [RectifiedHR().walk(schedule, level, sizes) for level in range(3)]
    assert sum((walk.timesteps for walk in walks), ()) == schedule.timesteps
    assert [walk.sigmas[0] for walk in walks] == [schedule.sigmas[i] for i in (0, 40, 47)]


def test_guidance_of_rectifiedhr_rises(scheduler_config: dict[str, Any]) -> None:
    """5, 36.8 and 50 for a scale of 5; 5 and 30 with two levels."""
    schedule = make_schedule(scheduler_config, 4)

    def factor(index: int, count: int) -> float:
        level = dataclasses.replace(level_at(index), sizes=(ONE,) * count)
        return RectifiedHR().guidance_at(Moment(level, 0, schedule, 7))

    assert [round(5 * factor(index, 3), 1) for index in range(3)] == [5.0, 36.8, 50.0]
    assert [5 * factor(index, 2) for index in range(2)] == [5.0, 30.0]


def test_timesteps_of_frecas(scheduler_config: dict[str, Any]) -> None:
    """As `walk.shifted` has it: left at 400 and 200, started at 999, 606 and 395."""
    schedule, sizes = make_schedule(scheduler_config, 50, "ddim"), FreCaS().sizes(FOUR, ONE)
    walks = [FreCaS().walk(schedule, level, sizes) for level in range(3)]
    assert [(walk.timesteps[0], walk.timesteps[-1]) for walk in walks] == [(999, 400), (606, 200), (395, 0)]
    assert walks[0].init_sigma == pytest.approx((walks[0].sigmas[0] ** 2 + 1) ** 0.5)


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


@torch.no_grad()
def test_equal_weights_of_frecas_are_plain_guidance(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    level = dataclasses.replace(level_at(1), sizes=((64, 80), (136, 160)))
    moment = Moment(level, 1, make_schedule(scheduler_config, 3), 7)
    latents = normal((1, 4, *level.latent_hw), 1)
    plain = denoiser(latents, 1, moment.schedule)
    torch.testing.assert_close(
        FreCaS(high_guidance=1.0).predict(denoiser, latents, moment), plain, atol=1e-5, rtol=1e-5
    )
    twice = FreCaS(high_guidance=2.0).predict(denoiser, latents, moment) - plain
    assert low_band(twice, (2, 2), "box").norm() < 0.5 * twice.norm()


@torch.no_grad()
def test_swift_without_guidance_asks_the_unet_once(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    schedule, seen = make_schedule(scheduler_config, 3), list[int]()
    handle = denoiser.network.register_forward_pre_hook(lambda unet, given: seen.append(len(given[0])))
    for method in (Swift(), Draft()):
        method.predict(denoiser, normal((1, 4, 17, 20), 1), Moment(level_at(1), 1, schedule, 7))
    handle.remove()
    assert seen == [2, 1]


@pytest.mark.parametrize("method", [Swift(structure=0.0), ScaleDiff(structure=False)], ids=["swift", "scalediff"])
@torch.no_grad()
def test_without_structure_a_prediction_is_plain(
    method: Method, denoiser: Denoiser, scheduler_config: dict[str, Any]
) -> None:
    moment = Moment(level_at(1), 2, make_schedule(scheduler_config, 4), 7)
    latents = normal((1, 4, 17, 20), 1)
    assert torch.equal(method.predict(denoiser, latents, moment), denoiser(latents, 2, moment.schedule))


def test_the_weight_of_scalediff_falls_as_released(scheduler_config: dict[str, Any]) -> None:
    """20 steps on SDXL from timestep 381."""
    schedule = make_schedule(scheduler_config, 50)
    found = [ScaleDiff().weight_at(Moment(level_at(1), step, schedule, 7)) for step in range(30, 50)]
    released = [
        1,
        0.94,
        0.88,
        0.82,
        0.76,
        0.69,
        0.63,
        0.57,
        0.51,
        0.46,
        0.40,
        0.35,
        0.29,
        0.24,
        0.20,
        0.15,
        0.11,
        0.07,
        0.04,
        0.0,
    ]
    assert found == pytest.approx(released, abs=0.011)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("swift", {"leave": 0.0}),
        ("swift", {"start_timestep": 0.0}),
        ("swift", {"growth": 1.0}),
        ("swift", {"band_filter": "wide"}),
        ("swift", {"structure": 2.0}),
        ("rectifiedhr", {"levels": 1}),
        ("rectifiedhr", {"first": 1.0}),
        ("rectifiedhr", {"filter": "area"}),
        ("frecas", {"shift": -1.0}),
        ("frecas", {"posterior": "mean"}),
        ("scalediff", {"band": 0.0}),
        ("enlarge", {"filter": "area"}),
    ],
)
def test_values_without_a_meaning_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        METHODS[name](**values)


def test_one_size_is_plain_sampling(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 10)
    for name in ("swift", "draft", "rectifiedhr", "frecas"):
        assert METHODS[name]().walk(schedule, 0, (ONE,)) is Direct().walk(schedule, 0, (ONE,))
