"""Each solver against diffusers' own scheduler, on one denoiser and one stream of noise; resumed after every step."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale.cascade import Level
from freescale.forward_process import normal
from freescale.methods import Direct
from freescale.noise_levels import beta_quantile, timestep_of, training_sigmas
from freescale.schedule import Schedule, make_schedule
from freescale.solvers import SOLVERS, NoiseLevels
from tests.toys import goes_on, points

if TYPE_CHECKING:
    from torch import Tensor

# diffusers hands tensors to numpy in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SHAPE = (1, 4, 5, 6)
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
CLOSE = {"rtol": 2e-5, "atol": 1e-5}  # both in float64 between float32 tables of noise levels
KARRAS = {"use_karras_sigmas": True}


def model(given: Tensor) -> Tensor:
    """Some smooth function of scaled latents in the place of a UNet. It is not told the time: rounded times differ."""
    return torch.tanh(0.7 * given) + 0.1 * given.roll(1, -1)


def noise(i: int) -> Tensor:
    """What step `i` adds."""
    return normal(SHAPE, 3, i).double()


def ours(schedule: Schedule, left: int = 0) -> Tensor:
    """The latents after all steps but the last `left`."""
    latents, history = normal(SHAPE, 0).double() * schedule.init_sigma, ()
    for i in range(len(schedule) - left):
        output = model(schedule.model_input(latents, i))
        fresh = noise(i) if schedule.noise_sigma(i) else None
        latents, history = schedule.advance(schedule.to_noise(output, latents, i), i, latents, history, fresh)
    return latents


def theirs(scheduler: Any, monkeypatch: pytest.MonkeyPatch, left: int = 0, **options: Any) -> Tensor:
    import sys

    latents = normal(SHAPE, 0).double() * scheduler.init_noise_sigma
    module = sys.modules[type(scheduler).__module__]
    for i, timestep in enumerate(scheduler.timesteps[: len(scheduler.timesteps) - left]):
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *a, i=i, **k: noise(i))
        output = model(scheduler.scale_model_input(latents, timestep))
        latents = scheduler.step(output, timestep, latents, **options).prev_sample.double()
    return latents


def on_levels_of(schedule: Schedule, sigmas: Tensor) -> Schedule:
    """The schedule with the noise levels as diffusers has them, rounded to float32."""
    torch.testing.assert_close(torch.tensor(schedule.sigmas), sigmas.float(), rtol=3e-5, atol=1e-6)
    return replace(schedule, sigmas=tuple(sigmas.double().tolist()))


def diffusers_scheduler(name: str, steps: int, **config: Any) -> Any:
    import diffusers

    scheduler = getattr(diffusers, name)(**{**CONFIG, **config})
    scheduler.set_timesteps(steps)
    return scheduler


NO_SAMPLE = ("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler")
MULTISTEP = "DPMSolverMultistepScheduler"


SOLVERS_OF_DIFFUSERS = [
    ("euler", "EulerDiscreteScheduler", {}),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
    ("dpmpp_2m", MULTISTEP, {}),
    ("dpmpp_2m", MULTISTEP, KARRAS),
    ("dpmpp_2m_sde", MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    ("dpmpp_2m_sde", MULTISTEP, {"algorithm_type": "sde-dpmsolver++", **KARRAS}),
    ("unipc", "UniPCMultistepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", KARRAS),
    ("heun", "HeunDiscreteScheduler", {}),
    ("dpm_2", "KDPM2DiscreteScheduler", {}),
    ("lms", "LMSDiscreteScheduler", {}),
]


@pytest.mark.parametrize(
    ("case", "prediction"),
    points(
        SOLVERS_OF_DIFFUSERS,
        ("epsilon", "v_prediction", "sample"),
        kept=lambda case, prediction: prediction == "epsilon" or case[0] in ("euler", "unipc"),
    ),
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_as_diffusers(case: tuple[str, str, dict[str, Any]], prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, name, config = case
    if prediction == "sample" and name in NO_SAMPLE:
        pytest.skip("diffusers has not implemented it")
    scheduler = diffusers_scheduler(name, 17, prediction_type=prediction, **config)
    schedule = make_schedule({**CONFIG, **config, "prediction_type": prediction}, 17, solver)
    sigmas = scheduler.sigmas
    if name == "KDPM2DiscreteScheduler":  # it has the levels of its steps twice, and those between them apart
        own, between = scheduler.sigmas[1:-3:2], scheduler.sigmas_interpol[1:-3:2]
        sigmas = torch.cat([sigmas[:1], torch.stack([between, own], 1).flatten(), sigmas[-1:]])
    schedule = on_levels_of(schedule, sigmas)
    assert schedule.init_sigma == pytest.approx(
        float(scheduler.init_noise_sigma) * (1 if not SOLVERS[solver].unit_variance else math.hypot(1, sigmas[0])),
        rel=1e-5,
    )
    left = int(solver == "lms")  # its last step is of first order here
    torch.testing.assert_close(ours(schedule, left), theirs(scheduler, monkeypatch, left), **CLOSE)


def test_dpm_2_ancestral() -> None:
    """Against the formulas written out, with the middle between a level and where noise lifts it (k-diffusion).

    diffusers 0.42.1 has the next level itself there.
    """
    schedule = make_schedule(CONFIG, 6, "dpm_2_ancestral")
    steps = make_schedule(CONFIG, 6).sigmas
    x = normal(SHAPE, 0).double() * schedule.init_sigma
    slope = lambda x, sigma: model(x / math.hypot(1, sigma))  # noqa: E731
    for k, (sigma, following) in enumerate(itertools.pairwise(steps)):
        if following == 0.0:
            x = x - sigma * slope(x, sigma)
            break
        up = following * math.sqrt(1 - (following / sigma) ** 2)
        down = math.sqrt(following**2 - up**2)
        middle = math.exp((math.log(sigma) + math.log(down)) / 2)
        halfway = x + (middle - sigma) * slope(x, sigma)
        x = x + (down - sigma) * slope(halfway, middle) + up * noise(2 * k + 1)
    torch.testing.assert_close(ours(schedule), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_lcm_as_diffusers(steps: int, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In these coordinates a step is the denoised latents and fresh noise; its own scalings are 0 and 1 to 1e-8."""
    config = CONFIG | {"prediction_type": prediction}
    scheduler = diffusers_scheduler("LCMScheduler", steps, prediction_type=prediction)
    schedule = make_schedule(config | {"timestep_spacing": "lcm"}, steps, "lcm")
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    torch.testing.assert_close(ours(schedule), theirs(scheduler, monkeypatch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_as_diffusers(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers_scheduler("TCDScheduler", 6)
    schedule = make_schedule(CONFIG | {"timestep_spacing": "lcm"}, 6, "tcd", eta)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    torch.testing.assert_close(ours(schedule), theirs(scheduler, monkeypatch, eta=eta), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_levels_as_diffusers(kind: str) -> None:
    """Timesteps between whole ones, found by log sigma; from the whole range, or that of the timesteps as Euler has."""
    flag = {f"use_{kind}_sigmas": True}
    for spacing, extra in (("linspace", {}), ("leading", {"sigma_range": "timesteps"})):
        config = CONFIG | flag | {"timestep_spacing": spacing}
        scheduler = diffusers_scheduler("EulerDiscreteScheduler", 20, **config)
        schedule = make_schedule(config | extra, 20)
        torch.testing.assert_close(torch.tensor(schedule.sigmas), scheduler.sigmas, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.tensor(schedule.timesteps), scheduler.timesteps, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("shape", [0.3, 0.6, 0.9])
def test_quantiles_of_beta(shape: float) -> None:
    from scipy.stats import beta

    for share in (0.0, 1e-4, 0.05, 0.3, 0.5, 0.77, 0.999, 1.0):
        assert beta_quantile(share, shape) == pytest.approx(beta.ppf(share, shape, shape), rel=1e-9, abs=1e-13)


def test_known_timesteps() -> None:
    """As diffusers has them for the steps that distilled models were made for."""
    known = {
        ("trailing", 4): (999, 749, 499, 249),
        ("trailing", 8): (999, 874, 749, 624, 499, 374, 249, 124),
        ("trailing", 1): (999,),
        ("lcm", 4): (999, 759, 499, 259),
        ("lcm", 8): (999, 879, 759, 639, 499, 379, 259, 139),
        ("sgm_uniform", 3): (999, 666, 333),
    }
    for (spacing, steps), timesteps in known.items():
        found = make_schedule(CONFIG | {"timestep_spacing": spacing}, steps).timesteps
        assert found == pytest.approx(timesteps), (spacing, steps)
    given = make_schedule(CONFIG, 1, "lcm", timesteps=(399,))
    assert given.timesteps == (399.0,)
    assert given.sigmas[0] == training_sigmas(CONFIG, 1000)[399]


def test_zero_terminal_snr_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    table = training_sigmas(config, 1000)
    assert [round(sigma, 1) for sigma in table[:-4:-1]] == [4096.0, 2254.2, 1124.6]
    scheduler = diffusers_scheduler("EulerDiscreteScheduler", 28, **config)
    schedule = make_schedule(config, 28)
    torch.testing.assert_close(torch.tensor(schedule.sigmas), scheduler.sigmas, rtol=1e-3, atol=1e-5)
    schedule = replace(schedule, sigmas=tuple(scheduler.sigmas.double().tolist()))
    torch.testing.assert_close(ours(schedule), theirs(scheduler, monkeypatch), rtol=1e-3, atol=1e-3)
    assert schedule.sigmas[1] == pytest.approx(57.9, abs=0.1)
    assert schedule.init_sigma == pytest.approx(4096.0, rel=1e-6)


@pytest.mark.parametrize("ztsnr", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_v_of_a_known_picture_leads_to_it(solver: str, ztsnr: bool) -> None:
    """A model that answers v of one picture, in float32 latents as a render has them."""
    config = CONFIG | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": ztsnr}
    schedule = make_schedule(config, 11, solver)
    truth = normal(SHAPE, 5)
    latents, history = normal(SHAPE, 1) * schedule.init_sigma, ()
    for i in range(len(schedule)):
        sigma = schedule.sigmas[i]
        alpha = 1 / math.sqrt(1 + sigma**2)
        v = alpha * (latents - truth) / sigma - alpha * sigma * truth
        eps = schedule.to_noise(v, latents, i)
        fresh = normal(SHAPE, 2, i) if schedule.noise_sigma(i) else None
        latents, history = schedule.advance(eps, i, latents, history, fresh)
    rest = schedule.sigmas[-1] * 4  # tcd ends with the noise of the first timestep
    torch.testing.assert_close(latents, truth, rtol=0, atol=1e-4 + rest)


def test_third_order_with_noise() -> None:
    """Against the integral of the exponential times the line through denoised latents and half of their bend.

    The half is k-diffusion's, by which DPM++ 3M SDE is known. diffusers 0.42.1 has the other sign in this term.
    """
    sigmas = (3.0, 2.2, 1.5, 0.9)
    constant, slope, bend = 1.3, -0.4, 0.25
    start, end = math.log(sigmas[2]), math.log(sigmas[3])

    def denoised(sigma: float, bend: float = bend) -> float:
        """A parabola in log sigma, about the start of the step."""
        x = math.log(sigma) - start
        return constant + slope * x + bend * x**2

    history = tuple(torch.tensor([denoised(s)], dtype=torch.float64) for s in (sigmas[1], sigmas[0]))
    latents = torch.tensor([0.7], dtype=torch.float64)
    fresh = sigmas[3] * math.sqrt(1 - (sigmas[3] / sigmas[2]) ** 2)
    levels = NoiseLevels((sigmas[1], sigmas[0]), sigmas[2], sigmas[3], fresh)
    eps = (latents - denoised(sigmas[2])) / sigmas[2]
    found, _ = SOLVERS["dpmpp_3m_sde"].step(eps, latents, levels, history, torch.zeros(1))
    parts = 20000
    width = (start - end) / parts
    middles = (start - (k + 0.5) * width for k in range(parts))
    integral = sum(2 * math.exp(2 * (end - x)) * denoised(math.exp(x), bend / 2) * width for x in middles)
    assert float(found) == pytest.approx((sigmas[3] / sigmas[2]) ** 2 * 0.7 + integral, abs=1e-8)


@pytest.mark.parametrize("solver", ["dpmpp_2s_ancestral", "dpmpp_sde"])
def test_two_calls_of_dpmpp(solver: str) -> None:
    """Against the two formulas written out (arXiv:2211.01095, algorithm 1, r = 1/2), with noise as ancestral steps."""
    schedule = make_schedule(CONFIG, 6, solver)
    steps = make_schedule(CONFIG, 6).sigmas
    x = normal(SHAPE, 0).double() * schedule.init_sigma
    denoise = lambda x, sigma: x - sigma * model(x / math.hypot(1, sigma))  # noqa: E731
    for k, (sigma, following) in enumerate(itertools.pairwise(steps)):
        first = denoise(x, sigma)
        if following == 0.0:
            x = first
            break
        up = following * math.sqrt(1 - (following / sigma) ** 2)
        down = math.sqrt(following**2 - up**2)
        if solver == "dpmpp_sde":
            middle = math.sqrt(sigma * following)
            lift = middle * math.sqrt(1 - (middle / sigma) ** 2)
            low = math.sqrt(middle**2 - lift**2)
        else:
            middle = low = math.sqrt(sigma * down)
            lift = 0.0
        halfway = low / sigma * x + (1 - low / sigma) * first + lift * noise(2 * k)
        x = down / sigma * x + (1 - down / sigma) * denoise(halfway, middle) + up * noise(2 * k + 1)
    torch.testing.assert_close(ours(schedule), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_interrupted_after_every_step(solver: str) -> None:
    """To the bit, with what the solver remembers and nothing else."""
    schedule = make_schedule(CONFIG | KARRAS, 7, solver, 0.4 if SOLVERS[solver].eta == "free" else 0.0)
    denoiser: Any = _Smooth()
    steps = goes_on(denoiser, Direct(), Level(0, (40, 48), (40, 48)), schedule)
    assert len(steps) == len(schedule) == (7 if SOLVERS[solver].calls == 1 else 13)


class _Smooth:
    """A denoiser without a UNet."""

    def __init__(self) -> None:
        from freescale.compute import Compute

        self.network, self.compute = torch.nn.Module(), Compute()

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return model(schedule.model_input(latents, i))


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("kind", [None, "karras", "exponential", "beta"])
def test_a_restart_has_about_the_same_noise(kind: str | None, solver: str) -> None:
    """Where timesteps are uneven, a fraction is one of training time, and never between two calls of a step."""
    flag = {} if kind is None else {f"use_{kind}_sigmas": True}
    schedule = make_schedule(CONFIG | flag, 30, solver)
    calls = SOLVERS[solver].calls
    for fraction, timestep in ((0.3, 700), (0.7, 300)):
        step = schedule.step_at(fraction)
        assert step % calls == 0
        before, after = schedule.timesteps[step], schedule.timesteps[step + calls]
        assert after < timestep <= before + 1.0 + 1e-6
        assert schedule.fraction(step) <= fraction + 1e-9
    assert (schedule.step_at(0.0), schedule.step_at(1.0)) == (0, len(schedule))


def test_timesteps_go_back_to_their_levels() -> None:
    table = training_sigmas(CONFIG, 1000)
    for timestep in (0, 1, 17, 500, 998, 999):
        assert timestep_of(table, table[timestep]) == pytest.approx(timestep, abs=1e-9)
    assert (timestep_of(table, 1e-9), timestep_of(table, 1e9)) == (0.0, 999.0)
    assert timestep_of(table, math.sqrt(table[4] * table[5])) == pytest.approx(4.5)
