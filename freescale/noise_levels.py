"""Noise levels: those that a model was trained at, and those among them that sampling goes through.

A noise level is sigma = sqrt((1 - alpha_cumprod) / alpha_cumprod), the deviation of the noise beside a picture of
variance 1. Sampling takes either evenly spaced timesteps (`SPACINGS`) or levels of their own (`SIGMAS`), whose
timesteps are then found between those of training, by log sigma.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ZERO_SNR_ALPHA = 2.0**-24  # alpha_cumprod in place of 0: sigma is 4096, as in diffusers
LCM_STEPS = 50  # timesteps that latent consistency models are distilled at


def training_sigmas(config: Mapping[str, Any], total: int) -> list[float]:
    """Return sigma of every training timestep, ascending.

    With `rescale_betas_zero_snr` the last timestep is noise alone (arXiv:2305.08891, algorithm 1); its sigma, which
    would have no end, is 4096.
    """
    alphas_cumprod = list(itertools.accumulate((1.0 - beta for beta in _betas(config, total)), operator.mul))
    if config.get("rescale_betas_zero_snr"):
        root = [math.sqrt(alpha) for alpha in alphas_cumprod]
        scale = root[0] / (root[0] - root[-1])
        alphas_cumprod = [((each - root[-1]) * scale) ** 2 for each in root]
        alphas_cumprod[-1] = ZERO_SNR_ALPHA
    return [math.sqrt((1.0 - alpha) / alpha) for alpha in alphas_cumprod]


def _betas(config: Mapping[str, Any], total: int) -> Iterable[float]:
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    match config.get("beta_schedule", "linear"):
        case "scaled_linear":
            return (beta**2 for beta in _evenly(math.sqrt(start), math.sqrt(end), total))
        case "squaredcos_cap_v2":
            import torch  # whose cosine differs from Python's in the last bit

            angle = (torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008 * (math.pi / 2)
            bar = torch.cos(angle) ** 2
            betas: list[float] = (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999).tolist()
            return betas
    return _evenly(start, end, total)


@lru_cache(maxsize=8)
def _evenly(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return `count` numbers in even steps from both ends, each rounded once, as `torch.linspace` gives them."""
    step = Fraction((last - first) / (count - 1)) if count > 1 else Fraction(0)
    below = tuple(float(Fraction(first) + step * i) for i in range(count // 2))
    return below + tuple(float(Fraction(last) - step * (count - 1 - i)) for i in range(count // 2, count))


def _leading(steps: int, total: int, offset: int) -> list[float]:
    return [float(i * (total // steps) + offset) for i in reversed(range(steps))]


def _trailing(steps: int, total: int, offset: int) -> list[float]:
    return [float(round(total - i * total / steps) - 1) for i in range(steps)]


def _linspace(steps: int, total: int, offset: int) -> list[float]:
    return [(total - 1) * (1.0 - i / max(steps - 1, 1)) for i in range(steps)]


def _sgm_uniform(steps: int, total: int, offset: int) -> list[float]:
    """Return T - 1 and below in steps of (T - 1) / N, as Stability's generative models have them."""
    return [(total - 1) * (1.0 - i / steps) for i in range(steps)]


def _lcm(steps: int, total: int, offset: int) -> list[float]:
    """Return N of the 50 timesteps that a latent consistency model knows (arXiv:2310.04378)."""
    if steps > LCM_STEPS:
        raise ValueError(f"num_inference_steps is {steps}, allowed: 1 to {LCM_STEPS} with timestep_spacing lcm")
    known = [float((k + 1) * (total // LCM_STEPS) - 1) for k in reversed(range(LCM_STEPS))]
    return [known[i * LCM_STEPS // steps] for i in range(steps)]


SPACINGS: Mapping[str, Callable[[int, int, int], list[float]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "sgm_uniform": _sgm_uniform,
    "lcm": _lcm,
}
"""Timesteps by (steps, training timesteps, offset); the first three are those of arXiv:2305.08891, table 2."""


def spaced_timesteps(spacing: str, steps: int, total: int, offset: int) -> list[float]:
    """Return descending timesteps within 0 .. total - 1; `offset` shifts `leading`."""
    return [min(timestep, total - 1.0) for timestep in SPACINGS[spacing](steps, total, offset)]


def _shares(steps: int) -> list[float]:
    """Return 0 to 1 in even steps."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _karras(low: float, high: float, steps: int) -> list[float]:
    """Return levels whose seventh root falls evenly (arXiv:2206.00364, equation 5)."""
    first, last = high ** (1 / 7), low ** (1 / 7)
    return [(first + share * (last - first)) ** 7 for share in _shares(steps)]


def _exponential(low: float, high: float, steps: int) -> list[float]:
    """Return levels whose logarithm falls evenly."""
    return [high ** (1 - share) * low**share for share in _shares(steps)]


def _beta(low: float, high: float, steps: int) -> list[float]:
    """Return levels at quantiles of Beta(0.6, 0.6), dense at both ends (arXiv:2407.12173)."""
    return [low + beta_quantile(1.0 - share, 0.6) * (high - low) for share in _shares(steps)]


SIGMAS: Mapping[str, Callable[[float, float, int], list[float]]] = {
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
}
"""Noise levels by (lowest, highest, steps), descending from the highest."""


@cache
def beta_quantile(share: float, shape: float) -> float:
    """Return x at which the distribution Beta(shape, shape) reaches `share`, to about 1e-15; `shape` below 1."""
    if share > 0.5:
        return 1.0 - beta_quantile(1.0 - share, shape)
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(middle, shape) < share else (low, middle)
    return high if share else 0.0


def _beta_share(x: float, a: float) -> float:
    """Return the regularised incomplete beta function I_x(a, a) for x up to 1/2, by its power series."""
    factor, total, k = 1.0, 1.0 / a, 0
    while abs(factor) > 1e-17:
        k += 1
        factor *= (k - a) / k * x
        total += factor / (a + k)
    return float(total * x**a * math.gamma(2 * a) / math.gamma(a) ** 2)


def timestep_of(table: Sequence[float], sigma: float) -> float:
    """Return the timestep at a noise level, between those of training by log sigma, as diffusers finds it."""
    if sigma <= table[0]:
        return 0.0
    if sigma >= table[-1]:
        return len(table) - 1.0
    below = bisect.bisect_right(table, sigma) - 1
    return below + math.log(sigma / table[below]) / math.log(table[below + 1] / table[below])


def sigma_at(table: Sequence[float], timestep: float) -> float:
    """Return the noise level at a timestep; between whole ones by a straight line, as diffusers finds it."""
    below = min(int(timestep), len(table) - 2)
    return table[below] + (timestep - below) * (table[below + 1] - table[below])


def given_levels(timesteps: Sequence[float], steps: int, table: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return timesteps that were asked for, with their noise levels. Raises `ValueError` for any that do not fall."""
    falling = all(before > after for before, after in itertools.pairwise(timesteps))
    if len(timesteps) != steps or not falling or not 0 <= timesteps[-1] <= timesteps[0] <= len(table) - 1:
        raise ValueError(f"timesteps are {list(timesteps)}, allowed: {steps} that fall, from {len(table) - 1} to 0")
    return [float(timestep) for timestep in timesteps], [sigma_at(table, timestep) for timestep in timesteps]


def kind_of(config: Mapping[str, Any]) -> str | None:
    """Return which levels of `SIGMAS` a configuration asks for; None: those of evenly spaced timesteps."""
    return next((kind for kind in SIGMAS if config.get(f"use_{kind}_sigmas")), None)


def spaced_levels(
    config: Mapping[str, Any], spacing: str, steps: int, table: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return the timesteps and noise levels of a configuration.

    Levels of their own go through the whole training range, or with `sigma_range` of `timesteps`, a field of ours,
    through that of the timesteps: diffusers has the one with its DPM solvers, the other with Euler and kin.
    """
    times = spaced_timesteps(spacing, steps, len(table), int(config.get("steps_offset", 0)))
    if config.get("rescale_betas_zero_snr"):  # between the last two timesteps a line to sigma = 4096 means nothing
        times = [float(round(timestep)) if timestep > len(table) - 2 else timestep for timestep in times]
    sigmas = [sigma_at(table, timestep) for timestep in times]
    if (kind := kind_of(config)) is None:
        return times, sigmas
    low, high = (sigmas[-1], sigmas[0]) if config.get("sigma_range") == "timesteps" else (table[0], table[-1])
    sigmas = SIGMAS[kind](low, high, steps)
    return [timestep_of(table, sigma) for sigma in sigmas], sigmas
