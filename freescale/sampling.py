"""The denoising loop: one level's latents along a schedule, under the method's changes, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from freescale.forward_process import normal
from freescale.freeu import freeu_patches
from freescale.gradients import without_gradients
from freescale.long_videos import temporal_patches
from freescale.moment import Moment
from freescale.todo import todo_patches
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from freescale.cascade import Level
    from freescale.guidance import Denoiser
    from freescale.methods.base import Method
    from freescale.schedule import Schedule
    from freescale.solvers import History


@dataclass(frozen=True, eq=False)
class Step:
    """A finished step: enough to go on from.

    `extra` is what a method or a patch put into `Moment.extra`, by names of letters, digits and `._-`. Its tensors are
    on the UNet's device and of any shape and dtype. They are replaced or taken out, never written to: a `Step` that was
    yielded stays as it is.
    """

    index: int
    latents: Tensor
    history: History = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    resumable: bool = True  # whether a loop that goes on from here gives the same bits


@without_gradients
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
    extra: Mapping[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Yield each finished step of `start .. stop - 1`, the latents (B, C, [F,] h, w) in it.

    `latents` stand before step `start` (`Method.start`, or a `Step` with its `history` and `extra`), on the UNet's
    device. Wherever the loop
    is cut, going on from the last `Step` gives the same bits. The UNet is clean at every yield. A video of more frames
    than the model was trained for (`Level.frames`) is attended in windows of as many.
    """
    method.check(latents)
    kept = dict(extra or {})
    throughout = [*temporal_patches(latents, level), *freeu_patches(method.freeu), *todo_patches(level)]
    for i in range(start, len(schedule) if stop is None else stop):
        moment = Moment(level, i, schedule, seed, denoiser.compute, kept)
        latents = method.blend(latents, moment)
        with patched(denoiser.network, (*throughout, *method.patches(moment))):
            noise_pred = method.predict(denoiser, latents, moment)
        fresh = normal(latents.shape, seed, "ancestral", level.index, i) if schedule.noise_sigma(i) else None
        latents, history = schedule.advance(noise_pred, i, latents, history, fresh)
        if i == len(schedule) - 1:
            latents = method.finish(latents, moment)
        yield Step(i, latents, history, dict(kept))
