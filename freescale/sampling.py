"""Solvers and the denoising loop.

Latents are in variance-exploding coordinates, z = x0 + sigma * n, for every solver: DDIM, whose own latents
are z * sqrt(alpha_cumprod), is here the ancestral Euler step with its noise scaled by eta. A `Schedule` holds
no state, so a loop may be cut after any step and resumed to the same bits.

VideoCrafter2 was trained with a dynamic scale: x_t = sqrt(a_t) s_t x0 + sqrt(1 - a_t) n, with s_t falling from 1 to
0.7 over the first 400 timesteps. Then z = x_t / (sqrt(a_t) s_t) = x0 + (sigma_t / s_t) n: in these coordinates it is
another table of noise levels, for solvers and restarts alike, and only what the UNet sees is scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from freescale.forward_process import normal
from freescale.long_videos import temporal_patches
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from freescale.cascade import Level
    from freescale.guidance import Denoiser
    from freescale.methods.base import Method

Solver = Literal["euler", "ddim", "euler_ancestral", "dpmpp_2m"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]

History = tuple["Tensor", ...]


@dataclass(frozen=True)
class Schedule:
    """N timesteps, their noise levels and the solver that walks along them."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]  # N + 1; the last is where the walk ends
    init_sigma: float  # deviation of the first latents
    solver: Solver = "euler"
    eta: float = 0.0  # share of ancestral noise: 0 deterministic, 1 ancestral
    prediction_type: PredictionType = "epsilon"
    final_scale: float = 1.0  # of the last `advance`: sqrt(alpha_cumprod) where the walk ends above sigma = 0
    num_train_timesteps: int = 1000
    scales: tuple[float, ...] = ()  # dynamic scale at each of `sigmas`, which hold sigma / s; empty: 1

    def __len__(self) -> int:
        return len(self.timesteps)

    def fraction(self, i: int) -> float:
        """Return how far step `i` is along the schedule, 0 to 1."""
        return i / len(self)

    def step_at(self, fraction: float) -> int:
        """Return int(fraction * N), safe from rounding: the step at 0.3 of 50 is 15, at 0.7 of 50 is 35."""
        return int(fraction * len(self) + 1e-9)

    def model_input(self, latents: Tensor, i: int) -> Tensor:
        """Return the latents as the UNet was trained to see them, with unit variance."""
        scale = self.scales[i] if self.scales else 1.0
        return latents / (math.sqrt(1.0 + (self.sigmas[i] * scale) ** 2) / scale)

    def to_noise(self, model_output: Tensor, latents: Tensor, i: int) -> Tensor:
        """Return the noise (eps) that a model output of this prediction type means."""
        sigma = self.sigmas[i]
        if self.prediction_type == "v_prediction":
            return model_output / math.sqrt(1.0 + sigma**2) + latents * (sigma / (1.0 + sigma**2))
        return (latents - model_output) / sigma if self.prediction_type == "sample" else model_output

    def noise_sigma(self, i: int) -> float:
        """Return the deviation of the fresh noise that step `i` adds; 0 for none.

        DDIM's variance (arXiv:2010.02502, equation 16) divided by alpha_cumprod of the next step.
        """
        scale, next_scale = self.scales[i : i + 2] if self.scales else (1.0, 1.0)
        sigma, following = self.sigmas[i] * scale, self.sigmas[i + 1] * next_scale
        return self.eta * following * math.sqrt(max(sigma**2 - following**2, 0.0)) / sigma / next_scale

    def advance(
        self, noise_pred: Tensor, i: int, latents: Tensor, history: History = (), noise: Tensor | None = None
    ) -> tuple[Tensor, History]:
        """Return the latents after step `i` and what the solver remembers of it.

        `noise` is standard normal, needed where `noise_sigma(i)` is not 0.
        """
        if self.solver == "dpmpp_2m":
            latents, history = self._dpmpp_2m(noise_pred, i, latents, history)
        else:
            latents, history = self._ancestral(noise_pred, i, latents, noise), ()
        if i == len(self) - 1 and self.final_scale != 1.0:
            latents = latents * self.final_scale
        return latents, history

    def _ancestral(self, noise_pred: Tensor, i: int, latents: Tensor, noise: Tensor | None) -> Tensor:
        """Euler to the noise level that the fresh noise lifts back to the next one; plain Euler for eta =
        0."""
        up = self.noise_sigma(i)
        down = math.sqrt(self.sigmas[i + 1] ** 2 - up**2)
        latents = latents + (down - self.sigmas[i]) * noise_pred
        if up == 0.0:
            return latents
        if noise is None:
            raise ValueError(f"noise is None at step {i}, allowed: a tensor where the solver adds noise")
        return latents.add_(up * noise.to(latents))

    def _dpmpp_2m(self, noise_pred: Tensor, i: int, latents: Tensor, history: History) -> tuple[Tensor, History]:
        """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2); first order where there is no history, and at the
        end."""
        sigma, following = self.sigmas[i], self.sigmas[i + 1]
        denoised = latents - sigma * noise_pred
        if following == 0.0:
            return denoised, (denoised,)
        h = math.log(sigma / following)
        extrapolated = denoised
        if history:
            ratio = math.log(self.sigmas[i - 1] / sigma) / h
            extrapolated = denoised + (denoised - history[0].to(denoised)) / (2.0 * ratio)
        return (following / sigma) * latents - math.expm1(-h) * extrapolated, (denoised,)


def make_schedule(
    config: Mapping[str, Any], num_inference_steps: int, solver: Solver = "euler", eta: float = 0.0
) -> Schedule:
    """Return the schedule for a diffusers `scheduler_config.json` (its class is not looked at: `solver`
    decides).

    Noise levels between whole timesteps are interpolated linearly. The walk ends at sigma = 0, except DDIM
    with `set_alpha_to_one=False`, which ends at the first training timestep. `eta` is for DDIM;
    `euler_ancestral` has 1. `dynamic_scale` (b, steps), a field of ours, is the scale of VideoCrafter2.
    """
    total = int(config.get("num_train_timesteps", 1000))
    spacing = str(config.get("timestep_spacing", "leading"))
    prediction_type = config.get("prediction_type", "epsilon")
    _check(solver, eta, num_inference_steps, total, config)
    table = _train_sigmas(config, total)
    timesteps = _timesteps(spacing, num_inference_steps, total, int(config.get("steps_offset", 0)))
    sigmas = [_interpolate(table, timestep) for timestep in timesteps]
    ends_above_zero = solver == "ddim" and not config.get("set_alpha_to_one", True)
    final_sigma = table[0] if ends_above_zero else 0.0
    # As in diffusers: an Euler walk that does not lead with timestep T - 1 starts from noise of the variance
    # that its first latents would have, sigma^2 + 1; so does every solver whose own latents have unit
    # variance.
    has_signal = spacing == "leading" or solver in ("ddim", "dpmpp_2m")
    schedule = Schedule(
        timesteps=tuple(timesteps),
        sigmas=(*sigmas, final_sigma),
        init_sigma=math.sqrt(sigmas[0] ** 2 + 1.0) if has_signal else sigmas[0],
        solver=solver,
        eta=1.0 if solver == "euler_ancestral" else eta,
        prediction_type=prediction_type,
        final_scale=1.0 / math.sqrt(1.0 + final_sigma**2),
        num_train_timesteps=total,
    )
    dynamic = config.get("dynamic_scale")
    return schedule if dynamic is None else _with_dynamic_scale(schedule, float(dynamic[0]), int(dynamic[1]))


def _with_dynamic_scale(schedule: Schedule, smallest: float, steps: int) -> Schedule:
    """Return the schedule of a model trained with x0 scaled by linspace(1, smallest, steps)[t], then by `smallest`.

    The walk ends where the scale is 1, at timestep 0 or before.
    """
    falls = (1.0 - smallest) / max(steps - 1, 1)
    scales = tuple(1.0 - falls * min(t, steps - 1.0) for t in (*schedule.timesteps, 0.0))
    return replace(
        schedule,
        sigmas=tuple(sigma / scale for sigma, scale in zip(schedule.sigmas, scales, strict=True)),
        init_sigma=schedule.init_sigma / scales[0],
        scales=scales,
    )


_CHOICES: dict[str, tuple[Any, ...]] = {
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


def _check(solver: str, eta: float, steps: int, total: int, config: Mapping[str, Any]) -> None:
    """Raise for what would be read wrongly in silence."""
    if solver not in get_args(Solver):
        raise ValueError(f"solver is {solver!r}, allowed: {', '.join(get_args(Solver))}")
    if not 0.0 <= eta <= 1.0 or (eta and solver in ("euler", "dpmpp_2m")):
        raise ValueError(f"eta is {eta} with {solver}, allowed: 0 to 1 with ddim, 0 with euler and dpmpp_2m")
    if not 1 <= steps <= total:
        raise ValueError(f"num_inference_steps is {steps}, allowed: 1 to {total}")
    if config.get("dynamic_scale") is not None and config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"prediction_type is {config['prediction_type']!r} with a dynamic scale, allowed: 'epsilon'")
    for name, allowed in _CHOICES.items():
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
    """Return descending timesteps within 0 .. total - 1 (arXiv:2305.08891, table 2); `offset` shifts
    `leading`."""
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


@dataclass(frozen=True, eq=False)
class Moment:
    """Where a render is: all that a method may decide by."""

    level: Level
    step: int
    schedule: Schedule
    seed: int
    window_rows: int | None = None  # the denoiser's; decides memory, not the result
    phase_convs: bool = False  # the denoiser's; decides speed, not the result

    @property
    def timestep(self) -> float:
        """Training timestep of this step."""
        return self.schedule.timesteps[self.step]

    @property
    def sigma(self) -> float:
        """Noise level before this step."""
        return self.schedule.sigmas[self.step]

    @property
    def fraction(self) -> float:
        """How far along the schedule, 0 to 1."""
        return self.schedule.fraction(self.step)


@dataclass(frozen=True, eq=False)
class Step:
    """A finished step: enough to go on from."""

    index: int
    latents: Tensor
    history: History = ()


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: Schedule,
    method: Method,
    level: Level,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    history: History = (),
) -> Iterator[Step]:
    """Yield each finished step of `start .. stop - 1`, the latents (B, C, [F,] h, w) in it.

    `latents` stand before step `start` (`Method.start`, or a `Step`), on the UNet's device. Wherever the loop
    is cut, going on from the last `Step` gives the same bits. The UNet is clean at every yield. A video of more frames
    than the model was trained for (`Level.frames`) is attended in windows of as many.
    """
    method.check(latents)
    over_frames = list(temporal_patches(latents, level))
    for i in range(start, len(schedule) if stop is None else stop):
        moment = Moment(level, i, schedule, seed, denoiser.window_rows, denoiser.phase_convs)
        latents = method.blend(latents, moment)
        with patched(denoiser.unet, (*over_frames, *method.patches(moment))):
            noise_pred = method.predict(denoiser, latents, moment)
        fresh = normal(latents.shape, seed, "ancestral", level.index, i) if schedule.noise_sigma(i) else None
        latents, history = schedule.advance(noise_pred, i, latents, history, fresh)
        if i == len(schedule) - 1:
            latents = method.finish(latents, moment)
        yield Step(i, latents, history)
