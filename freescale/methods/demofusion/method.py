"""DemoFusion (arXiv:2311.16973): progressive upscaling, skip residual and dilated sampling.

Level 0 is ordinary sampling at the training size. Every further phase, one for each multiple of that size, enlarges
the latents, noises them fully and samples all steps again. Early steps are interpolated towards the noised enlargement
(the skip residual). Each step predicts the noise in overlapping windows of the training size, which gives detail, and
in interleaved views of the whole picture, which gives structure. The UNet itself is not changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from freescale.cascade import CELL, cascade_sizes
from freescale.detail import detail_weight
from freescale.forward_process import generator
from freescale.frequency import blur_plane, gaussian_taps, is_identity
from freescale.methods.base import FeatureLevels, Method
from freescale.methods.demofusion.views import dilated_views, match_moments
from freescale.view_prediction import Crops, predict_views, window_views
from freescale.windows import Windows, place_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from freescale.cascade import Level, Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment

SMALLEST_PHASE = 0.125
"""In training sizes: a whole multiple that is at most this much below the target gets no phase of its own."""


@dataclass(frozen=True)
class DemoFusion(Method):
    """Phases, windows and dilated views; three scales are exponents of kappa(t), which falls from 1 to 0."""

    name: ClassVar[str] = "demofusion"
    by_views: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    phases: Literal["multiples", "doublings"] = "multiples"  # doublings: ours, FreeScale's sizes; 0.4 of the work at 8x
    skip_scale: float = 3.0  # alpha_1: with a larger one the enlarged picture's weight falls sooner
    dilated_scale: float = 1.0  # alpha_2: with a larger one the dilated views' weight falls sooner
    blur_scale: float = 1.0  # alpha_3: with a larger one the dilated views' blur falls sooner
    blur_sigma: float = 1.0  # latent cells, at the noisiest step; 0.8 in the released examples; 0: no blur
    jitter: bool = True
    border: Literal["clamp", "zero"] = "clamp"  # released: zero, beyond the canvas and where a side is padded
    crops: Crops = "origin"  # released: padded
    size_ids: Literal["target", "base"] = "target"  # the size that the model is told in every phase
    upsample: Literal["rgb", "latent"] = "latent"
    posterior: Literal["sample", "mode"] = "sample"
    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2; off in the release

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("skip_scale", "dilated_scale", "blur_scale", "blur_sigma"):
            if not (value := getattr(self, name)) >= 0.0:
                raise ValueError(f"{name} is {value}, allowed: 0 or more")
        self.check_choices(_CHOICES)

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its whole multiples (or doublings) below the target, and the target."""
        if self.phases == "doublings":
            return cascade_sizes(size, base_size, cell=cell)
        factor = max(side / base for side, base in zip(size, base_size, strict=True))
        if factor <= 1.0:
            return (size,)
        between = range(2, math.ceil(factor - SMALLEST_PHASE))
        phases = ((min(k * base_size[0], size[0]), min(k * base_size[1], size[1])) for k in between)
        return (base_size, *phases, size)

    def at_base(self) -> DemoFusion:
        """Return the method with FreeU's field only: level 0 depends on no other."""
        return DemoFusion(freeu=self.freeu)

    def at_start(self) -> DemoFusion:
        """Return the method at its defaults: a phase starts from its reference, noised to the first step."""
        return DemoFusion()

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the size of the last phase, in all of them, as released."""
        return sizes[-1] if self.size_ids == "target" else sizes[0]

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents interpolated towards the reference noised to this step; at the first they equal it."""
        level = moment.level
        if level.reference is None or level.noise is None or moment.step == 0:
            return latents
        anchor = moment.schedule.noised(level.reference.to(latents), level.noise, moment.step)
        return torch.lerp(latents, anchor, _kappa(moment) ** self.skip_scale)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return (1 - c) times the windows' noise and c times the dilated views', c = kappa ** dilated_scale."""
        level, weight = moment.level, _kappa(moment) ** self.dilated_scale
        if level.is_base or level.factor <= 1.0:
            return denoiser(latents, moment.step, moment.schedule)
        outside: Literal["mirror", "zero"] = "zero" if self.border == "zero" else "mirror"
        windows = window_views(self.windows(moment), level.cell, outside, self.crops)
        local = predict_views(denoiser, latents, windows, moment)
        views = dilated_views(level.latent_hw, dilated_factor(level), outside)
        dilated = predict_views(denoiser, self.smooth(latents, moment), views, moment)
        return torch.lerp(local, dilated, weight)

    def finish(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents of a phase with the mean and the deviation of level 0.

        Raises `ValueError` above level 0 where the level has no anchor.
        """
        level = moment.level
        if level.is_base:
            return latents
        if level.anchor is None:
            raise ValueError(f"level {level.index} lacks its anchor, allowed: the latents of level 0")
        return match_moments(latents, level.anchor.to(latents))

    def windows(self, moment: Moment) -> Windows:
        """Return this step's windows: of the training size, half overlapping, moved by up to an eighth."""
        level = moment.level
        jitter = generator(moment.seed, "jitter", level.index, moment.step) if self.jitter else None
        border: Literal["clamp", "mask"] = "clamp" if self.border == "clamp" else "mask"
        return place_windows(level.latent_hw, level.scale, jitter=jitter, border=border)

    def smooth(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return what the dilated views see: latents blurred less and less, with their own mean and deviation."""
        sigma = self.blur_sigma * (0.99 * _kappa(moment) ** self.blur_scale + 0.01)
        taps = gaussian_taps(2 * dilated_factor(moment.level) - 1, sigma) if sigma > 0.0 else (1.0,)
        return latents if is_identity(taps) else match_moments(blur_plane(latents, taps), latents)


def dilated_factor(level: Level) -> int:
    """Return the stride of the dilated views: the smallest for which a view is no larger than was trained for."""
    return max(1, math.ceil(level.factor - SMALLEST_PHASE))


def _kappa(moment: Moment) -> float:
    return detail_weight(moment.timestep, moment.schedule.num_train_timesteps)


_CHOICES: dict[str, tuple[str, ...]] = {
    "phases": ("multiples", "doublings"),
    "border": ("clamp", "zero"),
    "crops": get_args(Crops),
    "size_ids": ("target", "base"),
    "upsample": ("rgb", "latent"),
    "posterior": ("sample", "mode"),
}
