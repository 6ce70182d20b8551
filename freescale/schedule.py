"""The timesteps and noise levels of sampling, from noise to picture.

Latents are in variance-exploding coordinates, z = x0 + sigma * n, for every solver (`solvers`): DDIM, whose own
latents are z * sqrt(alpha_cumprod), is here the ancestral Euler step with its noise scaled by eta. A `Schedule` holds
no state, so a loop may be cut after any step and resumed to the same bits.

VideoCrafter2 was trained with a dynamic scale: x_t = sqrt(a_t) s_t x0 + sqrt(1 - a_t) n, with s_t falling from 1 to
0.7 over the first 400 timesteps. Then z = x_t / (sqrt(a_t) s_t) = x0 + (sigma_t / s_t) n: in these coordinates it is
another table of noise levels, for solvers and restarts alike, and only what the UNet sees is scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from freescale.solvers import SOLVERS, NoiseLevels, check_solver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from freescale.solvers import History, Solver

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class Schedule:
    """N timesteps, their noise levels and the solver that takes the steps between them."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]  # N + 1; the last is that of the result
    init_sigma: float  # deviation of the first latents
    solver: Solver = "euler"
    eta: float = 0.0  # share of ancestral noise: 0 deterministic, 1 ancestral
    prediction_type: PredictionType = "epsilon"
    final_scale: float = 1.0  # of the last `advance`: sqrt(alpha_cumprod) where sampling ends above sigma = 0
    num_train_timesteps: int = 1000
    scales: tuple[float, ...] = ()  # dynamic scale at each of `sigmas`, which hold sigma / s; empty: 1
    train_sigmas: tuple[float, ...] = field(default=(), repr=False)  # of every training timestep, ascending

    def __len__(self) -> int:
        return len(self.timesteps)

    def fraction(self, i: int) -> float:
        """Return how far step `i` is along the schedule, 0 to 1."""
        return i / len(self)

    def step_at(self, fraction: float) -> int:
        """Return int(fraction * N), safe from rounding: the step at 0.3 of 50 is 15, at 0.7 of 50 is 35."""
        return int(fraction * len(self) + 1e-9)

    def sigma_at(self, timestep: float) -> float:
        """Return the noise level of a training timestep, between whole ones interpolated linearly."""
        return _interpolate(self.train_sigmas, timestep)

    def model_input(self, latents: Tensor, i: int) -> Tensor:
        """Return the input of the UNet for VE latents before step `i`: scaled to unit variance."""
        scale = self.scales[i] if self.scales else 1.0
        return latents / (math.sqrt(1.0 + (self.sigmas[i] * scale) ** 2) / scale)

    def to_noise(self, model_output: Tensor, latents: Tensor, i: int) -> Tensor:
        """Return the noise (eps) for a model output of this prediction type, before step `i`."""
        sigma = self.sigmas[i]
        if self.prediction_type == "v_prediction":
            return model_output / math.sqrt(1.0 + sigma**2) + latents * (sigma / (1.0 + sigma**2))
        return (latents - model_output) / sigma if self.prediction_type == "sample" else model_output

    def noise_sigma(self, i: int) -> float:
        """Return the deviation of the fresh noise that step `i` adds; 0 for none.

        DDIM's variance (arXiv:2010.02502, equation 16) divided by alpha_cumprod of the next step.
        """
        if self.eta == 0.0:
            return 0.0
        scale, next_scale = self.scales[i : i + 2] if self.scales else (1.0, 1.0)
        sigma, following = self.sigmas[i] * scale, self.sigmas[i + 1] * next_scale
        return self.eta * following * math.sqrt(max(sigma**2 - following**2, 0.0)) / sigma / next_scale

    def advance(
        self, noise_pred: Tensor, i: int, latents: Tensor, history: History = (), noise: Tensor | None = None
    ) -> tuple[Tensor, History]:
        """Return the latents after step `i` and what the solver remembers of it.

        `noise` is standard normal, needed where `noise_sigma(i)` is not 0: without it `ValueError` is raised.
        """
        fresh = self.noise_sigma(i)
        if fresh and noise is None:
            raise ValueError(f"noise is None at step {i}, allowed: a tensor where the solver adds noise")
        levels = NoiseLevels(self.sigmas[i - 1] if i else None, self.sigmas[i], self.sigmas[i + 1], fresh)
        step = SOLVERS[self.solver].step
        latents, history = step(noise_pred, latents, levels, history, noise if fresh else None)
        if i == len(self) - 1 and self.final_scale != 1.0:
            latents = latents * self.final_scale
        return latents, history


def make_schedule(
    config: Mapping[str, Any], num_inference_steps: int, solver: Solver = "euler", eta: float = 0.0
) -> Schedule:
    """Return the schedule for a diffusers `scheduler_config.json`; `solver` decides, not the class named in it.

    `eta`, 0 to 1, is the share of ancestral noise of DDIM; `euler_ancestral` has 1, others 0. Noise levels between
    whole timesteps are interpolated linearly. Sampling ends at sigma = 0, except DDIM with `set_alpha_to_one=False`,
    which ends at the first training timestep. `dynamic_scale` (b, steps), a field of ours, is the scale of
    VideoCrafter2. Raises `ValueError` for what it does not know.
    """
    total = int(config.get("num_train_timesteps", 1000))
    spacing = str(config.get("timestep_spacing", "leading"))
    prediction_type = config.get("prediction_type", "epsilon")
    check_solver(solver, eta)
    _check(num_inference_steps, total, config)
    table = _train_sigmas(config, total)
    timesteps = _timesteps(spacing, num_inference_steps, total, int(config.get("steps_offset", 0)))
    sigmas = [_interpolate(table, timestep) for timestep in timesteps]
    traits = SOLVERS[solver]
    ends_above_zero = traits.ends_at_first_timestep and not config.get("set_alpha_to_one", True)
    final_sigma = table[0] if ends_above_zero else 0.0
    # As in diffusers: Euler sampling with spacing `leading`, which does not begin at timestep T - 1, starts from noise
    # of the variance that its first latents would have, sigma^2 + 1; so does every solver whose own latents have unit
    # variance.
    has_signal = spacing == "leading" or traits.unit_variance
    schedule = Schedule(
        timesteps=tuple(timesteps),
        sigmas=(*sigmas, final_sigma),
        init_sigma=math.sqrt(sigmas[0] ** 2 + 1.0) if has_signal else sigmas[0],
        solver=solver,
        eta=1.0 if traits.eta == "one" else eta,
        prediction_type=prediction_type,
        final_scale=1.0 / math.sqrt(1.0 + final_sigma**2),
        num_train_timesteps=total,
        train_sigmas=tuple(table),
    )
    dynamic = config.get("dynamic_scale")
    return schedule if dynamic is None else _with_dynamic_scale(schedule, float(dynamic[0]), int(dynamic[1]))


def _with_dynamic_scale(schedule: Schedule, smallest: float, steps: int) -> Schedule:
    """Return the schedule of a model trained with x0 scaled by linspace(1, smallest, steps)[t], then by `smallest`.

    Sampling ends where the scale is 1, at timestep 0 or before.
    """
    falls = (1.0 - smallest) / max(steps - 1, 1)
    scales = tuple(1.0 - falls * min(t, steps - 1.0) for t in (*schedule.timesteps, 0.0))
    return replace(
        schedule,
        sigmas=tuple(sigma / scale for sigma, scale in zip(schedule.sigmas, scales, strict=True)),
        init_sigma=schedule.init_sigma / scales[0],
        scales=scales,
    )


HONOURED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": get_args(Spacing),
    "prediction_type": get_args(PredictionType),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero",),
    "timestep_type": ("discrete",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
}
"""The values of a scheduler's settings that are read as they are meant, of those that change the noise levels."""


def _check(steps: int, total: int, config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a number of steps or a scheduler's setting that this module would read wrongly."""
    if not 1 <= steps <= total:
        raise ValueError(f"num_inference_steps is {steps}, allowed: 1 to {total}")
    if config.get("dynamic_scale") is not None and config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"prediction_type is {config['prediction_type']!r} with a dynamic scale, allowed: 'epsilon'")
    for name, allowed in HONOURED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name} is {config[name]!r}, allowed: {', '.join(map(repr, allowed))}")


def _train_sigmas(config: Mapping[str, Any], total: int) -> list[float]:
    """Return sqrt((1 - alpha_cumprod) / alpha_cumprod) of every training timestep, ascending."""
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    match config.get("beta_schedule", "linear"):
        case "scaled_linear":
            betas = torch.linspace(math.sqrt(start), math.sqrt(end), total, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":
            angle = (torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008 * (math.pi / 2)
            bar = torch.cos(angle) ** 2
            betas = (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
        case _:
            betas = torch.linspace(start, end, total, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1.0 - betas, 0)
    sigmas: list[float] = torch.sqrt((1.0 - alphas_cumprod) / alphas_cumprod).tolist()
    return sigmas


def _timesteps(spacing: str, steps: int, total: int, offset: int) -> list[float]:
    """Return descending timesteps within 0 .. total - 1 (arXiv:2305.08891, table 2); `offset` shifts `leading`."""
    if spacing == "leading":
        timesteps = [float(i * (total // steps) + offset) for i in reversed(range(steps))]
    elif spacing == "trailing":
        timesteps = [float(round(total - i * total / steps) - 1) for i in range(steps)]
    else:
        timesteps = [(total - 1) * (1.0 - i / max(steps - 1, 1)) for i in range(steps)]
    return [min(timestep, total - 1.0) for timestep in timesteps]


def _interpolate(table: Sequence[float], timestep: float) -> float:
    below = min(int(timestep), len(table) - 2)
    return table[below] + (timestep - below) * (table[below + 1] - table[below])
