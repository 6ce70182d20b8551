"""Solvers against diffusers' schedulers, and the loop itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from freescale.cascade import Level
from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.methods import Direct
from freescale.sampling import denoise
from freescale.schedule import Schedule, make_schedule
from freescale.solvers import SOLVERS, SolverTraits
from tests.toys import goes_on, level_at, run_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from freescale.moment import Moment
    from freescale.solvers import History, NoiseLevels

# diffusers hands tensors to numpy in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (2, 4, 5, 6)
# Schedulers keep float32 tables and, partly, float32 sums over 1000 factors; ours are float64.
TABLES = {"rtol": 2e-5, "atol": 1e-6}
RESULT = {"rtol": 2e-4, "atol": 2e-4}


def model(given: Tensor, timestep: float) -> Tensor:
    """Some smooth function of scaled latents and time, in the place of a UNet."""
    return torch.tanh(0.7 * given + 0.2 * math.sin(timestep)) + 0.1 * given.roll(1, -1)


def ours(schedule: Schedule, noise: Tensor, fresh: Callable[[int], Tensor] | None = None) -> Tensor:
    latents, history = noise * schedule.init_sigma, ()
    for i, timestep in enumerate(schedule.timesteps):
        output = model(schedule.model_input(latents, i), timestep)
        noise_pred = schedule.to_noise(output, latents, i)
        extra = fresh(i) if fresh else None
        latents, history = schedule.advance(noise_pred, i, latents, history, extra)
    return latents


def theirs(scheduler: Any, steps: int, noise: Tensor, **options: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(latents, timestep), float(timestep))
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
    return latents


def stock(config: dict[str, Any], *leave_out: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("set_alpha_to_one", *leave_out)}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_euler(scheduler_config: dict[str, Any], spacing: str, prediction_type: str) -> None:
    from diffusers import EulerDiscreteScheduler

    config = scheduler_config | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    noise = normal(SHAPE, 0)
    scheduler = EulerDiscreteScheduler(**stock(config))
    expected = theirs(scheduler, 20, noise)
    schedule = make_schedule(config, 20)
    assert schedule.init_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-5)
    torch.testing.assert_close(torch.tensor(schedule.sigmas), scheduler.sigmas, **TABLES)
    torch.testing.assert_close(torch.tensor(schedule.timesteps), scheduler.timesteps, **TABLES)
    torch.testing.assert_close(ours(schedule, noise), expected, **RESULT)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_other_noise_schedules(scheduler_config: dict[str, Any], beta_schedule: str) -> None:
    from diffusers import EulerDiscreteScheduler

    config = scheduler_config | {"beta_schedule": beta_schedule}
    scheduler = EulerDiscreteScheduler(**stock(config))
    scheduler.set_timesteps(30)
    sigmas = torch.tensor(make_schedule(config, 30).sigmas)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(scheduler_config: dict[str, Any], spacing: str, is_one: bool, eta: float) -> None:
    """Rescaled by sqrt(alpha_cumprod), with the same noise, and where it ends above sigma = 0."""
    from diffusers import DDIMScheduler

    config = scheduler_config | {"timestep_spacing": spacing, "set_alpha_to_one": is_one}
    noise = normal(SHAPE, 0)
    scheduler = DDIMScheduler(**config, clip_sample=False)
    scheduler.set_timesteps(20)
    latents = noise
    for i, timestep in enumerate(scheduler.timesteps):
        output = model(latents, float(timestep))
        fresh = normal(SHAPE, 1, i)
        options = {"eta": eta, "variance_noise": fresh if eta else None}
        latents = scheduler.step(output, int(timestep), latents, **options).prev_sample
    schedule = make_schedule(config, 20, "ddim", eta)
    mine = ours(schedule, noise, lambda i: normal(SHAPE, 1, i))
    torch.testing.assert_close(mine, latents, **RESULT)


def test_ddim_is_euler_but_for_its_end(scheduler_config: dict[str, Any]) -> None:
    euler, ddim = (make_schedule(scheduler_config, 10, solver) for solver in ("euler", "ddim"))
    assert euler.sigmas[:-1] == ddim.sigmas[:-1]
    assert (euler.sigmas[-1], euler.final_scale) == (0.0, 1.0)
    assert ddim.final_scale == pytest.approx(math.sqrt(0.99915), abs=1e-6)
    assert ddim.sigmas[-1] == pytest.approx(math.sqrt(0.00085 / 0.99915), rel=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_ancestral(scheduler_config: dict[str, Any], spacing: str) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    config = scheduler_config | {"timestep_spacing": spacing}
    noise = normal(SHAPE, 0)
    scheduler = EulerAncestralDiscreteScheduler(**stock(config))
    stream = torch.Generator().manual_seed(3)
    expected = theirs(scheduler, 12, noise, generator=stream)
    stream = torch.Generator().manual_seed(3)
    schedule = make_schedule(config, 12, "euler_ancestral")
    mine = ours(schedule, noise, lambda _: torch.randn(SHAPE, generator=stream))
    torch.testing.assert_close(mine, expected, **RESULT)


def test_turbo_timesteps(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config | {"timestep_spacing": "trailing"}, 4, "euler_ancestral")
    assert schedule.timesteps == (999, 749, 499, 249)
    assert [round(sigma, 2) for sigma in schedule.sigmas] == [14.61, 4.08, 1.61, 0.69, 0.0]
    assert schedule.init_sigma == schedule.sigmas[0]


@pytest.mark.parametrize("steps", [8, 20])
def test_dpmpp_2m(scheduler_config: dict[str, Any], steps: int) -> None:
    """With trailing timesteps, where both have the same (diffusers leads with another grid for this
    solver)."""
    from diffusers import DPMSolverMultistepScheduler

    config = scheduler_config | {"timestep_spacing": "trailing"}
    noise = normal(SHAPE, 0)
    scheduler = DPMSolverMultistepScheduler(**stock(config), algorithm_type="dpmsolver++", solver_order=2)
    mine = ours(make_schedule(config, steps, "dpmpp_2m"), noise)
    torch.testing.assert_close(mine, theirs(scheduler, steps, noise), **RESULT)


@given(sigma=st.floats(0.01, 20), seed=st.integers(0, 99))
def test_prediction_types_agree(sigma: float, seed: int) -> None:
    """One x0 and one noise, as the three prediction types give them."""
    clean, noise = normal((1, 4, 3, 3), seed, "x").double(), normal((1, 4, 3, 3), seed, "n").double()
    latents, alpha = clean + sigma * noise, 1 / math.sqrt(1 + sigma**2)
    outputs = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - alpha * sigma * clean}
    for prediction_type, output in outputs.items():
        schedule = Schedule((500.0,), (sigma, 0.0), 1.0, prediction_type=prediction_type)
        torch.testing.assert_close(schedule.to_noise(output, latents, 0), noise, atol=1e-10, rtol=1e-10)


@given(eta=st.floats(0, 1), i=st.integers(0, 18))
def test_noise_and_direction_make_up_the_next_level(eta: float, i: int) -> None:
    schedule = make_schedule({"beta_schedule": "scaled_linear"}, 20, "ddim", eta)
    up, following = schedule.noise_sigma(i), schedule.sigmas[i + 1]
    assert 0.0 <= up <= following
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    clean, _ = schedule.advance(one, i, schedule.sigmas[i] * one, (), zero)
    assert float(clean) ** 2 + up**2 == pytest.approx(following**2, abs=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_says_what_its_solver_does(scheduler_config: dict[str, Any], solver: str) -> None:
    """How many tensors it remembers, which the planner counts, and whether it adds noise."""
    traits, eta = SOLVERS[solver], 0.5 if SOLVERS[solver].eta == "free" else 0.0
    schedule = make_schedule(scheduler_config, 5, solver, eta)
    assert len(schedule) == (5 if traits.calls == 1 else 9)
    held, history = [], ()
    for i in range(len(schedule)):
        _, history = schedule.advance(normal(SHAPE, 1), i, normal(SHAPE, 2), history, normal(SHAPE, 3))
        held.append(len(history))
    assert max(held) == traits.remembers
    assert any(map(schedule.noise_sigma, range(len(schedule)))) == (traits.eta != "none")


def test_a_solver_is_a_function_and_a_row(scheduler_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adams and Bashforth's second order, uneven steps and all, is known everywhere once it is in the table."""

    def adams(
        noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
    ) -> tuple[Tensor, History]:
        step, slope = levels.following - levels.current, noise_pred
        if history and levels.previous is not None:
            slope = noise_pred + step / (levels.current - levels.previous) / 2 * (noise_pred - history[0])
        return latents + step * slope, (noise_pred,)

    monkeypatch.setitem(SOLVERS, "adams", SolverTraits(adams, remembers=1))
    schedule = make_schedule(scheduler_config, 13, "adams")
    denoiser: Any = Toward(normal(SHAPE, 5))
    noise = normal(SHAPE, 1) * schedule.init_sigma
    *_, last = denoise(denoiser, noise, schedule, Direct(), Level(0, (40, 48), (40, 48)), seed=1)
    torch.testing.assert_close(last.latents, denoiser.truth, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="allowed: 0 to 1 with ddim and tcd, 0 with adams"):
        make_schedule(scheduler_config, 13, "adams", 0.5)


def test_fresh_noise_is_asked_for(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 5, "euler_ancestral")
    with pytest.raises(ValueError, match="noise is None at step 2"):
        schedule.advance(torch.ones(1), 2, torch.ones(1))
    assert schedule.noise_sigma(4) == 0.0


@pytest.mark.parametrize(
    ("fraction", "steps", "step"),
    [
        (0.3, 50, 15),
        (0.7, 50, 35),
        (0.5, 4, 2),
        (0.3, 20, 6),
        (0.7, 30, 21),
        (0.0, 9, 0),
        (1.0, 7, 7),
        (0.29, 100, 29),
    ],
)
def test_fractions_are_steps(scheduler_config: dict[str, Any], fraction: float, steps: int, step: int) -> None:
    schedule = make_schedule(scheduler_config, steps)
    assert schedule.step_at(fraction) == step
    if step < steps:
        assert schedule.fraction(step) <= fraction + 1e-9


def test_timesteps_of_the_paper(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 50)
    assert schedule.timesteps == tuple(981.0 - 20 * i for i in range(50))
    by_step = {i: round(schedule.sigmas[i], 3) for i in (0, 15, 35)}
    assert by_step == {0: 13.12, 15: 3.093, 35: 0.779}


@given(steps=st.integers(1, 1000), spacing=st.sampled_from(["leading", "trailing", "linspace"]))
def test_schedules_descend_within_the_training_range(steps: int, spacing: str) -> None:
    config = {"beta_schedule": "scaled_linear", "timestep_spacing": spacing, "steps_offset": 1}
    schedule = make_schedule(config, steps)
    assert len(schedule) == len(schedule.sigmas) - 1 == steps
    assert schedule.timesteps[0] <= 999.0
    assert schedule.timesteps[-1] >= 0.0
    assert all(a >= b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"beta_schedule": "quadratic"}, {}, "beta_schedule is 'quadratic', allowed: 'linear'"),
        ({"timestep_spacing": "karras"}, {}, "timestep_spacing is 'karras'"),
        ({"prediction_type": "flow"}, {}, "prediction_type is 'flow'"),
        ({"use_karras_sigmas": 7}, {}, "use_karras_sigmas is 7, allowed: False, True"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {}, "use_karras_sigmas and use_beta_sigmas are both"),
        ({"rescale_betas_zero_snr": True}, {}, "rescale_betas_zero_snr is True with prediction_type 'epsilon'"),
        ({"timestep_spacing": "lcm"}, {"num_inference_steps": 51}, "is 51, allowed: 1 to 50 with timestep_spacing lcm"),
        ({}, {"timesteps": (999, 499)}, "allowed: 10 that fall, from 999 to 0"),
        ({}, {"timesteps": (999, 1000), "num_inference_steps": 2}, "allowed: 2 that fall"),
        ({}, {"solver": "heum"}, "solver is 'heum', allowed: euler, ddim"),
        ({}, {"eta": 0.5}, "eta is 0.5 with euler"),
        ({}, {"solver": "ddim", "eta": 1.5}, "eta is 1.5 with ddim"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps is 0, allowed: 1 to 1000"),
        ({}, {"num_inference_steps": 1001}, "num_inference_steps is 1001"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(
    scheduler_config: dict[str, Any], change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(scheduler_config | change, **{"num_inference_steps": 10, **options})


class Toward:
    """The perfect denoiser of one picture: eps = (z - x*) / sigma, on a UNet without layers."""

    compute = Compute()

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.network = truth, nn.Module()

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return (latents - self.truth) / schedule.sigmas[i]


@pytest.mark.parametrize("solver", SOLVERS)
def test_perfect_noise_leads_to_the_picture(scheduler_config: dict[str, Any], solver: Any) -> None:
    config = scheduler_config | {"set_alpha_to_one": True}
    schedule = make_schedule(config, 13, solver)
    denoiser: Any = Toward(normal(SHAPE, 5))
    noise = normal(SHAPE, 1) * schedule.init_sigma
    *_, last = denoise(denoiser, noise, schedule, Direct(), Level(0, (40, 48), (40, 48)), seed=1)
    assert last.index == len(schedule) - 1
    rest = schedule.sigmas[-1] * 4  # tcd ends with the noise of the first timestep
    torch.testing.assert_close(last.latents, denoiser.truth, atol=1e-5 + rest, rtol=0)


def test_gradients_are_off_inside_and_on_between(scheduler_config: dict[str, Any]) -> None:
    seen = []

    class Looking(Toward):
        def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return super().__call__(latents, i, schedule)

    level, schedule = Level(0, (40, 48), (40, 48)), make_schedule(scheduler_config, 3)
    looking: Any = Looking(normal(SHAPE, 0))
    for _ in denoise(looking, normal(SHAPE, 1), schedule, Direct(), level, seed=0):
        seen.append(torch.is_grad_enabled())
    assert seen == [False, True] * 3


@dataclass(frozen=True)
class Keeping(Direct):
    """Keeps each step's latents as they stood before it, until the second step after it takes them out."""

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        moment.extra[f"before{moment.step}"] = latents
        return latents + 0.01 * moment.extra.pop(f"before{moment.step - 2}", latents)


def test_what_a_method_keeps_goes_on_with_a_step(scheduler_config: dict[str, Any]) -> None:
    denoiser: Any = Toward(normal((1, 4, 8, 10), 5))
    whole = goes_on(denoiser, Keeping(), level_at(0), make_schedule(scheduler_config, 5))
    assert [sorted(step.extra) for step in whole[:3]] == [["before0"], ["before0", "before1"], ["before1", "before2"]]
    again = run_from(denoiser, Keeping(), level_at(0), make_schedule(scheduler_config, 5), replace(whole[2], extra={}))
    assert not torch.equal(again[-1].latents, whole[-1].latents)
