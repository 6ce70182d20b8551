"""Solvers that call the UNet twice a step: at the noise level of the step, and at one in the middle or at its end.

A `Schedule` has a row for each call, so that the loop, the checkpoints and the planner see calls as steps. The first
row goes to the middle and leaves a memory; the second, which finds it, goes to the next level. Without the memory, a
second row is a step of first order of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.solvers.euler import euler
from freescale.solvers.step import with_noise

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.solvers.step import History, NoiseLevels


def heun(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take half of a step of Heun's method (arXiv:2206.00364, algorithm 1): an Euler step, then its correction.

    The correction is added to the latents as they are, so that what a method made of them is kept.
    """
    if history and levels.previous is not None:
        half = (levels.current - levels.previous) / 2.0
        return latents + half * (noise_pred - history[0]), ()
    return euler(noise_pred, latents, levels, (), None)[0], _unless_last((noise_pred,), levels)


def dpm_2(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take half of a step of DPM-Solver-2 (arXiv:2206.00364, appendix B): an Euler step by the slope in its middle.

    With fresh noise it is the ancestral one.
    """
    if history and levels.previous is not None:
        start = latents - (levels.current - levels.previous) * history[0]
        return with_noise(start + (levels.down - levels.previous) * noise_pred, levels, noise), ()
    return euler(noise_pred, latents, levels, (), None)[0], _unless_last((noise_pred,), levels)


def dpmpp_2s(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take half of a step of DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1), with fresh noise where there is any.

    With noise at the end alone it is the ancestral one, with noise in the middle too it is SDE-DPM-Solver++.
    """
    denoised = latents - levels.current * noise_pred
    if history and levels.previous is not None:
        kept = levels.down / levels.previous
        return with_noise(kept * history[0] + (1.0 - kept) * denoised, levels, noise), ()
    kept = levels.down / levels.current
    moved = with_noise(kept * latents + (1.0 - kept) * denoised, levels, noise)
    return moved, _unless_last((latents,), levels)


def _unless_last(history: History, levels: NoiseLevels) -> History:
    """Return the memory for a second row, or nothing where the step ends the sampling and has none."""
    return history if levels.following > 0.0 else ()
