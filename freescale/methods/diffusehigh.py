"""DiffuseHigh (arXiv:2406.18459): a cascade of short restarts, sharpened, and held to the enlarged picture in pixels.

Each level enlarges the picture below, sharpens it, and takes the last 15 of 50 steps with more guidance. In the first
five of them x0 is decoded, its low band LL of one level of wavelets is replaced by that of the enlarged picture, and
what comes of it is encoded again: the VAE works inside these steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal

from freescale.cascade import CELL, growth_between, sizes_between
from freescale.guidance import scaled_guidance
from freescale.methods.base import FeatureLevels, Method
from freescale.wavelets import dwt2, idwt2

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.cascade import Level, Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver


@dataclass(frozen=True)
class DiffuseHigh(Method):
    """Sharpened restarts with the low band of wavelets of the enlarged picture."""

    name: ClassVar[str] = "diffusehigh"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    asks_vae: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"

    restart: float = 0.7  # 15 of 50 steps are taken
    structure: float = 0.8  # share of the schedule up to which x0 is held: 5 steps; `restart` or less: none
    guidance: float = 10 / 7.5  # factor of the guidance scale above level 0; released: 10 for 7.5
    sharpen: float = 1.0  # amount of the unsharp mask; 0: none
    sharpen_sigma: float = 1.05  # pixels; released: drawn from 0.1 to 2 by no seed, of which this is the mean
    posterior: Literal["sample", "mode"] = "mode"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.restart < 1.0:
            raise ValueError(f"restart is {self.restart}, allowed: 0 to below 1")
        if not 0.0 <= self.structure <= 1.0:
            raise ValueError(f"structure is {self.structure}, allowed: 0 to 1")
        for name in ("guidance", "sharpen"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more")
        if self.sharpen_sigma <= 0.0:
            raise ValueError(f"sharpen_sigma is {self.sharpen_sigma}, allowed: above 0")
        self.check_choices({"posterior": ("sample", "mode")})

    @property
    def solver(self) -> tuple[Solver, float]:
        """Euler."""
        return "euler", 0.0

    @property
    def clamps(self) -> bool:
        """Always: the release enlarges pictures in [0, 1]."""
        return True

    @property
    def sharpening(self) -> tuple[float, float] | None:
        """The amount and the deviation."""
        return (self.sharpen, self.sharpen_sigma) if self.sharpen else None

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return sizes in equal steps, two or as many as bring about the training size each: 1.5, 2; 2, 3, 4."""
        factor = growth_between(size, base_size)
        if factor <= 1:
            return (size,)
        steps = max(2, math.ceil(factor) - 1)
        shares = (Fraction(step, steps) for step in range(1, steps))
        return tuple(dict.fromkeys((base_size, *sizes_between(size, base_size, shares, cell), size)))

    def at_base(self) -> DiffuseHigh:
        """Return the defaults: level 0 is plain sampling."""
        return DiffuseHigh()

    def at_start(self) -> DiffuseHigh:
        """Return the method with the restart only."""
        return DiffuseHigh(restart=self.restart)

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at `restart` of the schedule."""
        return schedule.step_at(self.restart)

    def uses_vae(self, step: int, schedule: Schedule) -> bool:
        """Return whether x0 is held in this step."""
        return self.restart_step(schedule) <= step < schedule.step_at(self.structure)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction with more guidance above level 0, in the first steps with the low band of pixels."""
        level, step, schedule = moment.level, moment.step, moment.schedule
        if level.reference is None or level.factor <= 1.0:
            return denoiser(latents, step, schedule)
        noise_pred = scaled_guidance(denoiser, self.guidance)(latents, step, schedule)
        if not self.uses_vae(step, schedule):
            return noise_pred
        x0 = hold_pixels(latents - moment.sigma * noise_pred, level)
        return (latents - x0) / moment.sigma


def hold_pixels(x0: Tensor, level: Level) -> Tensor:
    """Return x0 (B, C, h, w) whose picture has the band LL (db4, one level) of the picture of the level's reference.

    Raises `ValueError` where the level has no VAE or no picture.
    """
    if level.codec is None or level.picture is None:
        raise ValueError(f"level {level.index} lacks codec or picture, allowed: both in a method that asks for the VAE")
    low, _ = dwt2(level.picture, "db4")
    _, details = dwt2(level.codec.decode(x0).clamp(-1.0, 1.0), "db4")
    return level.codec.encode(idwt2(low, details, "db4", level.size)).to(x0)
