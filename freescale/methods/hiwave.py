"""HiWave (arXiv:2506.20452): a full inversion of the enlarged picture, and guidance of its fine detail alone.

Level 0 is ordinary sampling at the training size. At every doubling the picture is enlarged and encoded. Overlapping
patches of the training size take it from sigma = 0 up through all noise levels (DDIM inversion, by the prompt without
guidance) and down again. On the way down:

* guidance is for detail (section "Detail enhancement"): the low wavelet band of x0 is that of the conditional
  prediction, the other bands are guided. A wavelet transform is linear, so the same holds for the predicted noise.
* the first steps are pulled back to the latents that the inversion went through (the skip residual).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from freescale.cascade import CELL, cascade_sizes
from freescale.detail import detail_weight
from freescale.enlarge import PictureFilter
from freescale.methods.base import FeatureLevels, Method
from freescale.view_prediction import feathered_views, pair_views, predict_views
from freescale.walk import inversion, rises
from freescale.wavelets import WAVELETS, Wavelet, detail_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver


@dataclass(frozen=True)
class HiWave(Method):
    """Inversion, wavelet guidance and a skip residual, in patches, on a cascade of doublings."""

    name: ClassVar[str] = "hiwave"
    video: ClassVar[bool] = False
    by_views: ClassVar[bool] = True
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    detail_guidance: float = 1.0  # w_d: factor of the guidance scale for the bands of detail; paper: w_d is 7.5
    wavelet: Wavelet = "sym4"
    skip: float | None = None  # share of the steps down with the residual; None: 0.3 up to twice the size, else 0.6
    skip_scale: float = 3.0  # exponent of the residual's weight, which falls with the timestep; DemoFusion's
    as_printed: bool = False  # the residual's weights with their roles as the paper prints them, the other way round
    feather: float = 0.2  # deviation of the patches' weights, in sides of a patch; 0: all cells count alike
    filter: PictureFilter = "lanczos"
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("detail_guidance", "skip_scale", "feather"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more")
        if self.skip is not None and not 0.0 <= self.skip <= 1.0:
            raise ValueError(f"skip is {self.skip}, allowed: 0 to 1")
        self.check_choices(
            {"wavelet": tuple(WAVELETS), "filter": get_args(PictureFilter), "posterior": ("sample", "mode")}
        )

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM without fresh noise; above level 0 it is Euler's solver whatever the spec says."""
        return "ddim", 0.0

    @property
    def picture_filter(self) -> PictureFilter:
        """The filter."""
        return self.filter

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def at_base(self) -> HiWave:
        """Return the defaults: level 0 is plain sampling."""
        return HiWave()

    def at_start(self) -> HiWave:
        """Return the defaults: a level starts from its reference itself."""
        return HiWave()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the whole schedule for level 0, else up through all of its noise levels and down again."""
        return inversion(schedule) if level else schedule

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Keep the latents that the way up goes through; on the way down, return these interpolated towards them.

        Raises `ValueError` on the way down where they are not there.
        """
        below = self.below_top(moment)
        name = f"inverted{abs(below)}"
        if not 0 < abs(below) < self.skipped(moment):
            return latents
        if below < 0:
            moment.extra[name] = latents
            return latents
        inverted = moment.extra.pop(name, None)
        if inverted is None:
            raise ValueError(f"step {moment.step} lacks {name}, allowed: the latents of the way up")
        weight = detail_weight(moment.timestep, moment.schedule.num_train_timesteps) ** self.skip_scale
        return torch.lerp(latents, inverted, 1.0 - weight if self.as_printed else weight)

    def kept(self, moment: Moment) -> tuple[str, ...]:
        """Return the names of the latents of the way up that this step or a later one asks for."""
        below = self.below_top(moment)
        first = 1 - below if below < 0 else max(below, 1)
        return tuple(f"inverted{j}" for j in range(first, self.skipped(moment)))

    def below_top(self, moment: Moment) -> int:
        """Return how many steps the highest noise level was ago, or below 0 how many it is ahead."""
        return moment.step - _rising(moment.schedule)

    def skipped(self, moment: Moment) -> int:
        """Return the number of steps down with a skip residual; 0 where there was no way up."""
        share = (0.3 if moment.level.factor <= 2.0 else 0.6) if self.skip is None else self.skip
        return int(share * _rising(moment.schedule) + 1e-9)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, above level 0 by patches: no guidance on the way up, of detail on the way down."""
        level, schedule = moment.level, moment.schedule
        if level.is_base or level.factor <= 1.0:
            return denoiser(latents, moment.step, schedule)
        views, weights = feathered_views(level, self.feather)
        if rises(schedule, moment.step) or not denoiser.is_guided(moment.step, schedule):
            return predict_views(replace(denoiser, guidance_scale=1.0), latents, views, moment, weights)
        negative, positive = pair_views(denoiser, latents, views, moment, weights)
        output = self.guide(denoiser, negative, positive)
        return schedule.to_noise(output, latents, moment.step)

    def guide(self, denoiser: Denoiser, negative: Tensor, positive: Tensor) -> Tensor:
        """Return the positive output with w_d (positive - negative) in place of its share in the bands of detail."""
        guidance = denoiser.guidance_scale * self.detail_guidance
        guided = positive + (guidance - 1.0) * detail_of(positive - negative, self.wavelet)
        return denoiser.combine(negative, positive, start=guided, scale=0.0)  # its deviation, by `guidance_rescale`


def _rising(walk: Schedule) -> int:
    """Return the number of steps up, which come first."""
    return sum(rises(walk, i) for i in range(len(walk)))
