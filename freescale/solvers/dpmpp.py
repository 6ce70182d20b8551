"""DPM-Solver++ (arXiv:2211.01095) with the memory of one or two steps, and UniPC, which corrects such steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from freescale.solvers.step import with_noise

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.solvers.step import History, NoiseLevels


def dpmpp_2m(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), and remember the denoised latents.

    It is of first order at the first step, where nothing is remembered, and at the last. It adds no noise.
    """
    sigma, following = levels.current, levels.following
    denoised = latents - sigma * noise_pred
    if following == 0.0:
        return denoised, (denoised,)
    kept, weight = following / sigma, levels.signal_after * math.expm1(-levels.log_step)
    return kept * latents - weight * _extrapolated(denoised, levels, history), (denoised,)


def dpmpp_2m_sde(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of SDE-DPM-Solver++(2M), which is 2M to the level that fresh noise lifts to the next one."""
    denoised = latents - levels.current * noise_pred
    if levels.following == 0.0:
        return denoised, (denoised,)
    kept = levels.down / levels.current
    latents = kept * latents + (1.0 - kept) * _extrapolated(denoised, levels, history)
    return with_noise(latents, levels, noise), (denoised,)


def dpmpp_3m_sde(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of SDE-DPM-Solver++(3M), and remember the denoised latents of two steps.

    It is 2M until two steps are remembered, and of first order at the last step. It is of first order also for a step
    that is longer (in log sigma) than those two together, as timesteps spaced evenly end in: a parabola that far
    outside of what it is drawn through leads to a ruined picture.
    """
    denoised = latents - levels.current * noise_pred
    steps = _log_steps(levels) if levels.following > 0.0 and len(history) > 1 and len(levels.past) > 1 else None
    if steps is None or steps[0] > steps[1] + steps[2]:
        latents, _ = dpmpp_2m_sde(noise_pred, latents, levels, history if steps is None else (), noise)
        return latents, (denoised, *history[:1])
    h, h_0, h_1 = steps
    r0, r1 = h_0 / h, h_1 / h
    slope_0, slope_1 = (denoised - history[0]) / r0, (history[0] - history[1]) / r1
    bend = slope_0 - slope_1
    kept = levels.down / levels.current
    whole = -math.log(kept)  # 2 h with all of the ancestral noise
    phi_2 = 1.0 - (1.0 - kept) / whole
    phi_3 = phi_2 / whole - 0.5
    latents = kept * latents + (1.0 - kept) * denoised
    latents += phi_2 * (slope_0 + bend * (r0 / (r0 + r1))) - phi_3 * (bend / (r0 + r1))
    return with_noise(latents, levels, noise), (denoised, history[0])


def unipc(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of UniPC (arXiv:2302.04867, order 2, B(h) = exp(h) - 1): correct the last step, then predict.

    The prediction is DPM-Solver++(2M). The correction is added to the latents as they are, so that what a method made
    of them after the last step is kept.
    """
    denoised = latents - levels.current * noise_pred
    if history and levels.past:
        latents = latents + _correction(denoised, levels, history)
    sigma, following = levels.current, levels.following
    if following == 0.0:
        return denoised, (denoised, *history[:1])
    kept = following / sigma
    share = 1.0 - kept if levels.signal == 1.0 else -levels.signal_after * math.expm1(-levels.log_step)
    latents = kept * latents + share * _extrapolated(denoised, levels, history)
    return latents, (denoised, *history[:1])


def _correction(denoised: Tensor, levels: NoiseLevels, history: History) -> Tensor:
    """Return UniC minus UniP of the step that led here, of the order that the prediction had."""
    h = levels.log_step_before
    phi = math.expm1(-h)
    difference = denoised - history[0]
    if len(history) < 2 or len(levels.past) < 2:
        return (-0.5 * phi * levels.signal) * difference
    ratio = -levels.log_step_second / h
    phi_1 = phi / -h - 1.0
    first, second = phi_1 / phi, (phi_1 / -h - 0.5) * 2.0 / phi
    weight = (first - second) / (1.0 - ratio)
    slope = (history[1] - history[0]) / ratio
    return (-phi * levels.signal) * ((weight - 0.5) * slope + (first - weight) * difference)


def _extrapolated(denoised: Tensor, levels: NoiseLevels, history: History) -> Tensor:
    """Return the denoised latents half a step on, by those of the step before; as they are without one."""
    if not history or not levels.past:
        return denoised
    ratio = levels.log_step_before / levels.log_step
    return denoised + (denoised - history[0].to(denoised)) / (2.0 * ratio)


def _log_steps(levels: NoiseLevels) -> tuple[float, float, float]:
    """Return how far log sigma falls in this step, in the one before, and in the one before that."""
    before, second = levels.past[:2]
    return (
        math.log(levels.current / levels.following),
        math.log(before / levels.current),
        math.log(second / before),
    )
