"""Linear multistep sampling: the polynomial through the slopes of up to four steps, integrated over the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.solvers.step import History, NoiseLevels


def lms(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take a step of Adams and Bashforth's method of order 4 for uneven steps, and remember three slopes.

    The last step is of first order, so that it ends at what is then predicted: a method may have moved the latents
    since the earlier slopes. In diffusers, where none does, it is of order 4.
    """
    slopes = (noise_pred, *history)[: 1 + len(levels.past)] if levels.following > 0.0 else (noise_pred,)
    at = (levels.current, *levels.past)[: len(slopes)]
    for j, slope in enumerate(slopes):
        latents = latents + _weight(at, j, levels.following) * slope
    return latents, slopes[:3]


def _weight(at: Sequence[float], j: int, end: float) -> float:
    """Return the integral from at[0] to `end` of the polynomial that is 1 at at[j] and 0 at the others.

    It is of degree 3 at most, for which Simpson's rule is exact.
    """

    def value(x: float) -> float:
        product = 1.0
        for k, other in enumerate(at):
            if k != j:
                product *= (x - other) / (at[j] - other)
        return product

    return (end - at[0]) / 6.0 * (value(at[0]) + 4.0 * value((at[0] + end) / 2.0) + value(end))
