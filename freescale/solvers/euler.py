"""Solvers of first order: one call of the UNet a step, and nothing remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freescale.solvers.step import with_noise

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.solvers.step import History, NoiseLevels


def euler(
    noise_pred: Tensor, latents: Tensor, levels: NoiseLevels, history: History, noise: Tensor | None
) -> tuple[Tensor, History]:
    """Take an Euler step to the noise level that `levels.fresh` of noise lifts to the next one.

    Without fresh noise it is the plain Euler step, which is DDIM with eta = 0 (arXiv:2010.02502). With noise of the
    whole next level it is LCM (arXiv:2310.04378), in between TCD (arXiv:2402.19159). `noise` is standard normal, and
    needed where there is fresh noise.
    """
    return with_noise(latents + (levels.down - levels.current) * noise_pred, levels, noise), ()
