"""A grid of tokens that is one latent cell further at every other step, so that no border between tokens stays.

I-Max (arXiv:2410.07536) and HiFlow (arXiv:2504.06232) have it in their code. What comes in at a border is the other
border here, so that noise stays noise; this is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.guidance import Denoiser
    from freescale.moment import Moment


def staggered(denoiser: Denoiser, latents: Tensor, moment: Moment, *, moves: bool = True) -> Tensor:
    """Return the prediction for latents (B, C, h, w); with `moves`, at odd steps of latents one cell down and right."""
    schedule = moment.schedule
    if not moves or moment.step // schedule.calls % 2 == 0:
        return denoiser(latents, moment.step, schedule)
    moved = denoiser(latents.roll((1, 1), (-2, -1)), moment.step, schedule)
    return moved.roll((-1, -1), (-2, -1))
