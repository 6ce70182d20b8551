"""PixelRush (arXiv:2602.12769): a level above the first is inverted in one step and refined in one step, in patches.

Level 0 is ordinary sampling at the training size. At every doubling the picture is enlarged and encoded. Overlapping
patches of the training size take it from sigma = 0 up to the noise level of timestep 249 (DDIM inversion) and down
again to 0. Patches are averaged by weights that fall from their centres, so that no seam shows. A little random noise
is mixed into the prediction of the way down (noise injection), which keeps one step from smoothing the picture.

The paper refines with SDXL-Turbo, a distilled model that gives a sharp picture in one step. Here the model refines its
own pictures. One step of a model that is not distilled gives the mean of all pictures that fit, which is smooth: the
method is meant for models that are distilled themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from freescale.cascade import CELL, cascade_sizes
from freescale.forward_process import normal
from freescale.guidance import scaled_guidance
from freescale.methods.base import FeatureLevels, Method
from freescale.view_prediction import feathered_views, predict_views
from freescale.walk import descent, inversion, rises

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver


@dataclass(frozen=True)
class PixelRush(Method):
    """Inversion and refinement in few steps, in feathered patches, on a cascade of doublings."""

    name: ClassVar[str] = "pixelrush"
    video: ClassVar[bool] = False
    by_views: ClassVar[bool] = True
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    start_timestep: float = 249.0  # K: how far up a level is inverted; the last of SDXL-Turbo's four timesteps
    steps: int = 1  # of a level, on the way up and on the way down each
    guidance: float = 1.0  # factor of the guidance scale on the way down; 0: no guidance, one UNet call for two
    inversion_guidance: float = 0.0  # factor of the guidance scale on the way up; 0: no guidance
    feather: float = 0.2  # deviation of the patches' weights, in sides of a patch; 0: all cells count alike
    injection: float = 0.95  # lambda: share of the prediction, the rest being noise, along a great circle; 1: no noise
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("start_timestep", "injection"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: above 0")
        for name in ("guidance", "inversion_guidance", "feather"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more")
        if self.injection > 1.0:
            raise ValueError(f"injection is {self.injection}, allowed: above 0, to 1")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, allowed: 1 or more")
        self.check_choices({"posterior": ("sample", "mode")})

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM without fresh noise; above level 0 it is Euler's solver whatever the spec says."""
        return "ddim", 0.0

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def at_base(self) -> PixelRush:
        """Return the defaults: level 0 is plain sampling."""
        return PixelRush()

    def at_start(self) -> PixelRush:
        """Return the defaults: a level starts from its reference itself."""
        return PixelRush()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the whole schedule for level 0, else `steps` from 0 up to K and as many down again."""
        return inversion(descent(schedule, self.start_timestep, self.steps)) if level else schedule

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, above level 0 by patches, on the way down with noise mixed in."""
        level, schedule = moment.level, moment.schedule
        if level.is_base or level.factor <= 1.0:
            return denoiser(latents, moment.step, schedule)
        is_up = rises(schedule, moment.step)
        denoiser = scaled_guidance(denoiser, self.inversion_guidance if is_up else self.guidance)
        views, weights = feathered_views(level, self.feather)
        noise_pred = predict_views(denoiser, latents, views, moment, weights)
        if is_up or self.injection == 1.0:
            return noise_pred
        return self.inject(noise_pred, latents, moment)

    def inject(self, noise_pred: Tensor, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction with noise in it, keyed by the level and the step; of a flow model in its noise."""
        fresh = normal(noise_pred.shape, moment.seed, "inject", moment.level.index, moment.step).to(noise_pred)
        if not moment.schedule.signals:
            return slerp(fresh, noise_pred, self.injection)
        signal = moment.schedule.signals[moment.step]
        noise = latents + signal * noise_pred  # latents = signal x0 + (1 - signal) noise, and noise_pred = noise - x0
        return (slerp(fresh, noise, self.injection) - latents) / signal


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return what lies between two tensors on a great circle: `share` 0 gives the first, 1 the second; row by row.

    Where the two are parallel, it lies on a straight line.
    """
    axes = tuple(range(1, first.ndim))
    lengths = [torch.linalg.vector_norm(x, dim=axes, keepdim=True) for x in (first, second)]
    angle = ((first * second).sum(axes, keepdim=True) / (lengths[0] * lengths[1])).clamp(-1.0, 1.0).acos()
    sine = angle.sin()
    weights = [torch.where(sine > 1e-4, (part * angle).sin() / sine, part) for part in (1.0 - share, share)]
    return weights[0] * first + weights[1] * second
