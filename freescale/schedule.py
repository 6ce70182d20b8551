"""The timesteps and noise levels of sampling, from noise to picture.

Latents are in variance-exploding coordinates, z = x0 + sigma * n, for every solver (`solvers`): DDIM, whose own
latents are z * sqrt(alpha_cumprod), is here the ancestral Euler step with its noise scaled by eta. A `Schedule` holds
no state, so a loop may be cut after any step and resumed to the same bits.

VideoCrafter2 was trained with a dynamic scale: x_t = sqrt(a_t) s_t x0 + sqrt(1 - a_t) n, with s_t falling from 1 to
0.7 over the first 400 timesteps. Then z = x_t / (sqrt(a_t) s_t) = x0 + (sigma_t / s_t) n: in these coordinates it is
another table of noise levels, for solvers and restarts alike, and only what the UNet sees is scaled.

Latents of a flow model are x = (1 - sigma) x0 + sigma n (`flow_levels`), and the model predicts v = n - x0. What it
predicts is here in both worlds the slope of the latents by sigma, eps or v, so that an Euler step, x0 = latents -
sigma * slope, and a solver made of these hold for both. `signals` are the shares of x0: 1 - sigma, or 1 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from freescale.flow_levels import flow_sigmas, has_whole_timesteps, signals_at
from freescale.forward_process import renoise
from freescale.noise_levels import (
    SIGMAS,
    SPACINGS,
    given_levels,
    kind_of,
    sigma_at,
    spaced_levels,
    timestep_of,
    training_sigmas,
)
from freescale.solvers import SOLVERS, NoiseLevels, check_solver
from freescale.solvers.step import PAST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from freescale.flow_levels import ShiftRule
    from freescale.solvers import History, Solver

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Schedule:
    """N timesteps, their noise levels and the solver that takes the steps between them.

    A step is a call of the UNet (guided or not): of a solver with two calls a step, it is half of what that solver
    calls a step.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]  # N + 1; the last is that of the result
    init_sigma: float  # deviation of the first latents
    solver: Solver = "euler"
    eta: float = 0.0  # share of ancestral noise: 0 deterministic, 1 ancestral
    prediction_type: PredictionType = "epsilon"
    final_scale: float = 1.0  # of the last `advance`: sqrt(alpha_cumprod) where sampling ends above sigma = 0
    num_train_timesteps: int = 1000
    scales: tuple[float, ...] = ()  # dynamic scale at each of `sigmas`, which hold sigma / s; empty: 1
    fresh: tuple[float, ...] = ()  # deviation of the noise that each step adds; empty: by `eta`
    by_time: bool = False  # a fraction is one of training time, as timesteps are uneven; else one of steps
    train_sigmas: tuple[float, ...] = field(default=(), repr=False)  # of every training timestep, ascending
    signals: tuple[float, ...] = ()  # share of the picture at each of `sigmas`; empty: 1

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def calls(self) -> int:
        """Calls of the UNet in one step of the solver: 1 or 2."""
        return SOLVERS[self.solver].calls

    def fraction(self, i: int) -> float:
        """Return how far step `i` is along the schedule, 0 to 1."""
        if self.by_time:
            return 1.0 - (self.timesteps[i] + 1.0) / self.num_train_timesteps
        return i // self.calls / -(-len(self) // self.calls)

    def step_at(self, fraction: float) -> int:
        """Return int(fraction * N), safe from rounding: the step at 0.3 of 50 is 15, at 0.7 of 50 is 35.

        Of uneven timesteps, it is the last step at or before this fraction of training time, so that a restart has
        about the same noise. It is never the second call of a step.
        """
        if fraction >= 1.0:
            return len(self)
        if not self.by_time:
            return self.calls * int(fraction * -(-len(self) // self.calls) + 1e-9)
        reached = [i for i in range(0, len(self), self.calls) if self.fraction(i) <= fraction + 1e-9]
        return reached[-1] if reached else 0

    def is_within(self, i: int, interval: tuple[float, float] | None) -> bool:
        """Return whether step `i` is from one fraction of the schedule on and before another; None: all are."""
        return interval is None or self.step_at(interval[0]) <= i < self.step_at(interval[1])

    def sigma_at(self, timestep: float) -> float:
        """Return the noise level of a training timestep, between whole ones interpolated linearly."""
        return sigma_at(self.train_sigmas, timestep)

    def noised(self, clean: Tensor, noise: Tensor, i: int) -> Tensor:
        """Return clean latents noised to the level before step `i`, with their device and dtype."""
        return renoise(clean, noise, self.sigmas[i], self.signals[i] if self.signals else 1.0)

    def model_input(self, latents: Tensor, i: int) -> Tensor:
        """Return the input of the network for latents before step `i`: VE ones scaled to unit variance."""
        if self.prediction_type == "flow":
            return latents
        scale = self.scales[i] if self.scales else 1.0
        return latents / (math.sqrt(1.0 + (self.sigmas[i] * scale) ** 2) / scale)

    def to_noise(self, model_output: Tensor, latents: Tensor, i: int) -> Tensor:
        """Return the noise (eps), or the velocity of a flow model, for a model output before step `i`.

        It is the slope of the latents by sigma: the latents minus sigma times it are x0.
        """
        sigma = self.sigmas[i]
        if self.prediction_type == "v_prediction":
            return model_output / math.sqrt(1.0 + sigma**2) + latents * (sigma / (1.0 + sigma**2))
        if self.prediction_type == "sample":  # without noise, an inversion's first step: the least that was trained
            return (latents - model_output) / (sigma or self.train_sigmas[0])
        return model_output

    def noise_sigma(self, i: int) -> float:
        """Return the deviation of the fresh noise that step `i` adds; 0 for none.

        DDIM's variance (arXiv:2010.02502, equation 16) divided by alpha_cumprod of the next step.
        """
        if self.fresh:
            return self.fresh[i]
        if self.eta == 0.0:
            return 0.0
        scale, next_scale = self.scales[i : i + 2] if self.scales else (1.0, 1.0)
        return ancestral(self.sigmas[i] * scale, self.sigmas[i + 1] * next_scale, self.eta) / next_scale

    def advance(
        self, noise_pred: Tensor, i: int, latents: Tensor, history: History = (), noise: Tensor | None = None
    ) -> tuple[Tensor, History]:
        """Return the latents after step `i` and what the solver remembers of it.

        `noise` is standard normal, needed where `noise_sigma(i)` is not 0: without it `ValueError` is raised.
        """
        fresh = self.noise_sigma(i)
        if fresh and noise is None:
            raise ValueError(f"noise is None at step {i}, allowed: a tensor where the solver adds noise")
        past = self.sigmas[max(i - PAST, 0) : i][::-1]
        signals = (self.signals[max(i - 1, 0)], *self.signals[i : i + 2]) if self.signals else ()
        levels = NoiseLevels(past, self.sigmas[i], self.sigmas[i + 1], fresh, *signals)
        step = SOLVERS[self.solver].step
        latents, history = step(noise_pred, latents, levels, history, noise if fresh else None)
        if i == len(self) - 1 and self.final_scale != 1.0:
            latents = latents * self.final_scale
        return latents, history


def ancestral(sigma: float, following: float, eta: float) -> float:
    """Return the deviation of fresh noise in a step from `sigma` to `following`; eta 0: none, 1: ancestral.

    A step to as much noise or more adds none.
    """
    if following >= sigma:
        return 0.0
    return eta * following * math.sqrt(max(sigma**2 - following**2, 0.0)) / sigma


def make_schedule(
    config: Mapping[str, Any],
    num_inference_steps: int,
    solver: Solver = "euler",
    eta: float = 0.0,
    timesteps: Sequence[float] = (),
    *,
    tokens: int | None = None,
    shift_rule: ShiftRule = "stock",
) -> Schedule:
    """Return the schedule for a diffusers `scheduler_config.json`; `solver` decides, not the class named in it.

    `eta`, 0 to 1, is the share of ancestral noise of DDIM and TCD; `euler_ancestral` and others have 1, the rest 0.
    `timesteps`, descending, are taken in place of the configuration's. Noise levels between whole timesteps are
    interpolated linearly. Sampling ends at sigma = 0, except TCD, and DDIM with `set_alpha_to_one=False`, which end at
    the first training timestep. `dynamic_scale` (b, steps), a field of ours, is the scale of VideoCrafter2. Raises
    `ValueError` for what it does not know.

    A flow model is known by its class, `FlowMatchEulerDiscreteScheduler`; only there do `tokens`, the number of image
    tokens, and `shift_rule` say something (`flow_levels`).
    """
    total = int(config.get("num_train_timesteps", 1000))
    check_solver(solver, eta)
    if not 1 <= num_inference_steps <= total:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, allowed: 1 to {total}")
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        sigmas, is_whole = flow_sigmas(config, num_inference_steps, tokens, shift_rule), has_whole_timesteps(config)
        return _flow_schedule(sigmas, total, solver, timesteps, is_whole)
    _check(config)
    schedule = _schedule(config, num_inference_steps, solver, eta, timesteps, training_sigmas(config, total))
    dynamic = config.get("dynamic_scale")
    return schedule if dynamic is None else _with_dynamic_scale(schedule, float(dynamic[0]), int(dynamic[1]))


def _schedule(
    config: Mapping[str, Any],
    steps: int,
    solver: Solver,
    eta: float,
    timesteps: Sequence[float],
    table: Sequence[float],
) -> Schedule:
    """Return the schedule of a model that was trained at the noise levels of `table`."""
    spacing = str(config.get("timestep_spacing", "leading"))
    if timesteps:
        times, sigmas = given_levels(timesteps, steps, table)
    else:
        times, sigmas = spaced_levels(config, spacing, steps, table)
    traits = SOLVERS[solver]
    ends_above = traits.ends_at_first_timestep
    ends_above = not config.get("set_alpha_to_one", True) if ends_above is None else ends_above
    final_sigma = table[0] if ends_above else 0.0
    # As in diffusers: Euler sampling with spacing `leading`, which does not begin at timestep T - 1, starts from noise
    # of the variance that its first latents would have, sigma^2 + 1; so does every solver whose own latents have unit
    # variance.
    has_signal = (spacing == "leading" or traits.unit_variance) and not config.get("rescale_betas_zero_snr")
    schedule = Schedule(
        timesteps=tuple(times),
        sigmas=(*sigmas, final_sigma),
        init_sigma=math.sqrt(sigmas[0] ** 2 + 1.0) if has_signal else sigmas[0],
        solver=solver,
        eta=1.0 if traits.eta == "one" else eta,
        prediction_type=config.get("prediction_type", "epsilon"),
        final_scale=1.0 / math.sqrt(1.0 + final_sigma**2),
        num_train_timesteps=len(table),
        by_time=bool(timesteps) or kind_of(config) is not None,
        train_sigmas=tuple(table),
    )
    return for_solver(schedule)


def _flow_schedule(
    sigmas: Sequence[float], total: int, solver: Solver, timesteps: Sequence[float], is_whole: bool
) -> Schedule:
    """Return the schedule of a flow model. Raises `ValueError` for a solver or timesteps that it cannot have."""
    if not SOLVERS[solver].flow:
        known = ", ".join(name for name, row in SOLVERS.items() if row.flow)
        raise ValueError(f"solver is {solver!r} with a flow model, allowed: {known}")
    if timesteps:
        raise ValueError(f"timesteps are {list(timesteps)} of a flow model, allowed: none")
    schedule = Schedule(
        timesteps=tuple(float(int(total * sigma)) if is_whole else total * sigma for sigma in sigmas),
        sigmas=(*sigmas, 0.0),
        init_sigma=sigmas[0],
        solver=solver,
        prediction_type="flow",
        num_train_timesteps=total,
        train_sigmas=tuple(timestep / total for timestep in range(total + 1)),
    )
    return for_solver(schedule)


def for_solver(schedule: Schedule) -> Schedule:
    """Return a schedule of plain steps with what its solver adds: second calls, or noise by a rule of its own.

    That of a flow model gets the signals of its noise levels.
    """
    adds = _with_middles if schedule.calls == 2 else _with_fresh
    whole = adds(schedule, schedule.train_sigmas)
    return replace(whole, signals=signals_at(whole.sigmas)) if whole.prediction_type == "flow" else whole


def _with_fresh(schedule: Schedule, table: Sequence[float]) -> Schedule:
    """Return the schedule with the noise of a solver that has a rule of its own for it."""
    match SOLVERS[schedule.solver].noise:
        case "all":
            return replace(schedule, fresh=schedule.sigmas[1:])
        case "tcd":  # down to the level of (1 - eta) of the next timestep, and up to it again
            following = schedule.sigmas[1:-1]
            down = [table[int((1.0 - schedule.eta) * timestep)] for timestep in schedule.timesteps[1:]]
            fresh = (math.sqrt(max(up**2 - low**2, 0.0)) for up, low in zip(following, down, strict=True))
            return replace(schedule, fresh=(*fresh, 0.0))
    return schedule


def _with_middles(schedule: Schedule, table: Sequence[float]) -> Schedule:
    """Return the schedule with a second row in each step but the last, for a solver with two calls a step."""
    middle = SOLVERS[schedule.solver].middle
    times, sigmas, fresh = list[float](), list[float](), list[float]()
    for i, (sigma, following) in enumerate(zip(schedule.sigmas, schedule.sigmas[1:-1], strict=False)):
        added = ancestral(sigma, following, schedule.eta)
        down = math.sqrt(following**2 - added**2)
        between = following if middle == "end" else math.sqrt(sigma * (down if middle == "down" else following))
        time = schedule.timesteps[i + 1] if middle == "end" else timestep_of(table, between)
        times += [schedule.timesteps[i], time]
        sigmas += [sigma, between]
        fresh += [ancestral(sigma, between, schedule.eta) if middle == "between" else 0.0, added]
    return replace(
        schedule,
        timesteps=(*times, schedule.timesteps[-1]),
        sigmas=(*sigmas, *schedule.sigmas[-2:]),
        fresh=(*fresh, 0.0),
    )


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
        fresh=tuple(sigma / scale for sigma, scale in zip(schedule.fresh, scales[1:], strict=False)),
    )


HONOURED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": tuple(SPACINGS),
    "prediction_type": tuple(kind for kind in get_args(PredictionType) if kind != "flow"),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero",),
    "timestep_type": ("discrete",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, True, None),
    "use_karras_sigmas": (False, True, None),
    "use_exponential_sigmas": (False, True, None),
    "use_beta_sigmas": (False, True, None),
    "sigma_range": ("training", "timesteps"),
}
"""The values of a scheduler's settings that are read as they are meant, of those that change the noise levels."""


def _check(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a scheduler's setting that this module would read wrongly."""
    prediction = config.get("prediction_type", "epsilon")
    if config.get("dynamic_scale") is not None and prediction != "epsilon":
        raise ValueError(f"prediction_type is {prediction!r} with a dynamic scale, allowed: 'epsilon'")
    for name, allowed in HONOURED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name} is {config[name]!r}, allowed: {', '.join(map(repr, allowed))}")
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr is True with prediction_type 'epsilon', allowed: 'v_prediction', 'sample': at zero "
            "SNR the noise says nothing of the picture"
        )
    if len(asked := [kind for kind in SIGMAS if config.get(f"use_{kind}_sigmas")]) > 1:
        raise ValueError(f"use_{asked[0]}_sigmas and use_{asked[1]}_sigmas are both True, allowed: one of them")
