"""Flow matching: noise levels and steps against diffusers' schedulers, and what holds of every step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freescale.cascade import Level
from freescale.compute import Compute
from freescale.flow_levels import FLOW_CLASS, flow_sigmas
from freescale.forward_process import normal
from freescale.methods import Direct, FreeScale
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.schedule import Schedule, make_schedule
from freescale.solvers import SOLVERS
from freescale.walk import relay

# diffusers hands tensors to numpy in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (2, 16, 5, 6)
FLOW = {"_class_name": FLOW_CLASS}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True}
FLOW_SOLVERS = [name for name, row in SOLVERS.items() if row.flow]


def model(latents: Tensor, sigma: float) -> Tensor:
    """Some smooth function of latents and time, in the place of a transformer."""
    return torch.tanh(0.7 * latents + 0.2 * math.sin(9 * sigma)) + 0.1 * latents.roll(1, -1)


class Toward:
    """The perfect velocity to one picture, (x - x*) / sigma, on a network without layers."""

    compute = Compute()

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.network = truth, nn.Module()

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return (latents - self.truth) / schedule.sigmas[i]


def ours(schedule: Schedule, noise: Tensor) -> Tensor:
    latents, history = noise * schedule.init_sigma, ()
    for i in range(len(schedule)):
        output = model(schedule.model_input(latents, i), schedule.timesteps[i] / 1000)
        latents, history = schedule.advance(schedule.to_noise(output, latents, i), i, latents, history)
    return latents


def theirs(scheduler: Any, noise: Tensor) -> Tensor:
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(model(latents, float(timestep) / 1000), timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_unipc_is_that_of_its_scheduler(steps: int) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(steps)
    schedule = make_schedule(FLOW | {"shift": 3.0, "sigma_grid": "unipc"}, steps, "unipc")
    torch.testing.assert_close(torch.tensor(schedule.sigmas), scheduler.sigmas, atol=1e-6, rtol=0)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    noise = normal(SHAPE, 0)
    torch.testing.assert_close(ours(schedule, noise), theirs(scheduler, noise), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "steps"), [(64, 2), (4096, 4), (9216, 28)])
@pytest.mark.parametrize(
    "config",
    [
        FLOW,
        FLOW | {"shift": 3.0},
        FLOW | {"shift": 3.0, "sigma_grid": "steps"},
        FLOW | {"shift": 6.0, "use_karras_sigmas": True},
        DYNAMIC,
        DYNAMIC | {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        DYNAMIC | {"time_shift_type": "linear", "sigma_grid": "training"},
        DYNAMIC | {"use_exponential_sigmas": True},
        DYNAMIC | {"use_beta_sigmas": True},
    ],
    ids=str,
)
def test_levels_and_steps_are_those_of_diffusers(config: dict[str, Any], tokens: int, steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(
        **{k: v for k, v in config.items() if k not in ("_class_name", "sigma_grid")}
    )
    line = [scheduler.config[f"{end}_{of}"] for of in ("image_seq_len", "shift") for end in ("base", "max")]
    dynamic = scheduler.config["use_dynamic_shifting"]
    by_steps = config.get("sigma_grid", "steps" if dynamic else "training") == "steps"
    sigmas = [1.0 - i / max(steps - 1, 1) * (1.0 - 1.0 / steps) for i in range(steps)]
    mu = calculate_shift(tokens, *line) if dynamic else None
    scheduler.set_timesteps(steps, sigmas=sigmas if by_steps else None, mu=mu)
    schedule = make_schedule(config, steps, tokens=tokens)
    torch.testing.assert_close(torch.tensor(schedule.sigmas), scheduler.sigmas, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.tensor(schedule.timesteps), scheduler.timesteps, atol=1e-3, rtol=1e-6)
    noise = normal(SHAPE, 0)
    torch.testing.assert_close(ours(schedule, noise), theirs(scheduler, noise), atol=1e-5, rtol=1e-5)


def test_dpmpp_2m_is_that_of_diffusers() -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(9)
    sigmas, noise = scheduler.sigmas.tolist(), normal(SHAPE, 0)
    schedule = dataclasses.replace(
        make_schedule(FLOW, 9, "dpmpp_2m"),
        timesteps=tuple(scheduler.timesteps.tolist()),
        sigmas=tuple(sigmas),
        signals=tuple(1.0 - sigma for sigma in sigmas),
    )
    torch.testing.assert_close(ours(schedule, noise), theirs(scheduler, noise), atol=1e-5, rtol=1e-5)


def test_heun_is_that_of_diffusers() -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    schedule, noise = make_schedule(FLOW | {"shift": 3.0}, 7, "heun"), normal(SHAPE, 0)
    assert len(schedule) == 13
    torch.testing.assert_close(ours(schedule, noise), theirs(scheduler, noise), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "stock", "root"),
    [(1024, 0.105, 0.105), (1536, 0.218, 0.149), (2048, 0.484, 0.190), (4096, 0.99974, 0.319), (8192, 1.0, 0.483)],
)
def test_rules_keep_noise_for_the_last_step_in_bounds(side: int, stock: float, root: float) -> None:
    """The last of 28 levels of FLUX.1: the stock line leaves all of a large picture to the last step."""
    tokens, of = (side // 16) ** 2, {}
    for rule in ("cap", "sqrt", 4.0):
        of[rule] = flow_sigmas(DYNAMIC, 28, tokens, rule)[-1]
    assert of["cap"] == pytest.approx(0.105, abs=1e-3)
    assert of["sqrt"] == pytest.approx(root, abs=1e-3)
    assert of[4.0] == pytest.approx(4 / 28 / (1 + 3 / 28))
    if side < 8192:
        assert flow_sigmas(DYNAMIC, 28, tokens)[-1] == pytest.approx(stock, abs=1e-3)
    else:
        with pytest.raises(ValueError, match="at 262144 tokens, where noise levels do not fall, allowed: cap, sqrt"):
            flow_sigmas(DYNAMIC, 28, tokens)


def test_one_step_is_from_noise_to_picture() -> None:
    for config in (FLOW, DYNAMIC | {"shift_terminal": 0.02}):
        assert make_schedule(config, 1, tokens=4096).sigmas == (1.0, 0.0)


def test_a_constant_shift_grows_by_the_root_alone() -> None:
    config = FLOW | {"shift": 3.0}
    assert flow_sigmas(config, 9, 65536) == flow_sigmas(config, 9, 65536, "cap") == flow_sigmas(config, 9)
    assert flow_sigmas(config, 9, 65536, "sqrt") == pytest.approx(flow_sigmas(FLOW | {"shift": 12.0}, 9))


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
@pytest.mark.parametrize("start", [0, 4])
def test_perfect_velocity_leads_to_the_picture(solver: str, start: int) -> None:
    """v = (x - x*) / sigma, from noise and from a restart: the reference noised by `noised`."""
    schedule, denoiser = make_schedule(DYNAMIC, 9, solver, tokens=4096), Toward(normal(SHAPE, 5))
    latents = schedule.noised(normal(SHAPE, 2), normal(SHAPE, 1), start)
    level, method = Level(0, (40, 48), (40, 48)), Direct()
    *_, last = denoise(denoiser, latents, schedule, method, level, seed=1, start=start)  # type: ignore[arg-type]
    torch.testing.assert_close(last.latents, denoiser.truth, atol=1e-5, rtol=0)


def test_what_was_noised_and_its_velocity_give_the_picture_back() -> None:
    """At every level, at pure noise too, where the noise alone would not."""
    schedule = make_schedule(DYNAMIC, 9, tokens=4096)
    clean, noise = normal(SHAPE, 0).double(), normal(SHAPE, 1).double()
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        latents = schedule.noised(clean, noise, i)
        torch.testing.assert_close(latents - sigma * schedule.to_noise(noise - clean, latents, i), clean)
    assert torch.equal(schedule.noised(clean, noise, 0), noise)
    assert torch.equal(schedule.noised(clean, noise, 9), clean)


def test_levels_restart_and_are_anchored_on_the_straight_line() -> None:
    schedule, method = make_schedule(DYNAMIC, 10, tokens=4096), FreeScale()
    clean, noise = normal(SHAPE, 0), normal(SHAPE, 1)
    level = Level(1, (80, 96), (40, 48), reference=clean, noise=noise)
    restart = method.restart_step(schedule)
    assert restart == 3
    for step in (restart, restart + 1):
        moment, sigma = Moment(level, step, schedule, 0), schedule.sigmas[step]
        expected = (1 - sigma) * clean + sigma * noise
        if step == restart:
            torch.testing.assert_close(method.start(SHAPE, moment), expected)
        else:
            kappa = (0.5 * (1 + math.cos(math.pi * (1 - sigma)))) ** 2
            torch.testing.assert_close(method.blend(torch.zeros(SHAPE), moment), kappa * expected)


def test_a_relay_of_a_flow_ends_at_the_picture() -> None:
    schedule = make_schedule(DYNAMIC, 9, tokens=4096)
    short = relay(schedule, 4)
    assert short.sigmas == (*schedule.sigmas[:4], 0.0)
    assert short.signals == (*schedule.signals[:4], 1.0)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {"_class_name": "FlowMatchLCMScheduler"},
            {},
            "_class_name is 'FlowMatchLCMScheduler', allowed: 'FlowMatchEuler",
        ),
        (DYNAMIC, {}, "tokens is None, allowed: the number of image tokens"),
        (FLOW, {"shift_rule": "sqrt"}, "tokens is None"),
        (FLOW, {"shift_rule": "root"}, "shift_rule is 'root', allowed: stock, cap, sqrt, or a number above 0"),
        (FLOW, {"shift_rule": 0.0}, "shift_rule is 0.0"),
        (FLOW, {"solver": "lms"}, "solver is 'lms' with a flow model, allowed: euler, dpmpp_2m, unipc, heun"),
        (FLOW, {"solver": "euler_ancestral"}, "solver is 'euler_ancestral' with a flow model"),
        (FLOW, {"solver": "ddim", "eta": 0.5}, "solver is 'ddim' with a flow model"),
        (FLOW, {"eta": 0.5}, "eta is 0.5 with euler"),
        (FLOW, {"timesteps": (999, 500, 100, 9)}, "of a flow model, allowed: none"),
        (FLOW | {"timestep_spacing": "trailing"}, {}, "timestep_spacing is 'trailing' of a flow model"),
        (FLOW | {"invert_sigmas": True}, {}, "invert_sigmas is True, allowed: False"),
        (FLOW | {"stochastic_sampling": True}, {}, "stochastic_sampling is True"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(config: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(config, 4, **options)
