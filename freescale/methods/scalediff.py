"""ScaleDiff (arXiv:2510.25818): neighbourhood patch attention, structure guidance and latent frequency mixing.

Level 0 is ordinary sampling at the training size. Every doubling is noised to step 0.6 of the schedule and sampled on,
with self-attention in windows of the training size (`patch_attention`). After each prediction the low band of x0 is
pulled to that of the enlarged picture, by a weight that falls with the noise (`structure`).

On transformers it is published for FLUX.1 [dev]: a restart at 0.4 of 30 steps, a band of 0.25, guidance 3.5, and sigma
as the weight. The noise of a level is that of the training size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.backbones.changes import patching
from freescale.cascade import CELL, cascade_sizes
from freescale.methods.base import FeatureLevels, Method
from freescale.structure import BandFilter, guide_structure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class ScaleDiff(Method):
    """Patch attention on a cascade of doublings, held to the enlarged picture by its low band."""

    name: ClassVar[str] = "scalediff"
    version: ClassVar[int] = 1
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "base"
    backbones = frozenset({"unet", "flow"})
    filters: ClassVar[bool] = True

    restart: float = 0.6  # 30 of 50 steps, timestep 381 (paper: 400); the README's example and FLUX: 0.4
    patches_only: bool = True  # self-attention in patches; false: over the whole grid (the paper's ablation)
    jitter: bool = True  # above twice the training size; as released for SDXL: false
    structure: bool = True  # structure guidance
    mix: bool = True  # latent frequency mixing of the reference
    band: float = 0.125  # share of the current grid that is the low band, on each axis; FLUX: 0.25
    band_filter: BandFilter = "bilinear"
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.restart < 1.0:
            raise ValueError(f"restart is {self.restart}, allowed: 0 to below 1")
        if not 0.0 < self.band <= 1.0:
            raise ValueError(f"band is {self.band}, allowed: above 0, to 1")
        self.check_choices({"band_filter": get_args(BandFilter), "posterior": ("sample", "mode")})

    @property
    def upsample(self) -> Literal["rgb", "latent", "mixed"]:
        """Both, joined by frequency, with `mix`."""
        return "mixed" if self.mix else "rgb"

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def at_base(self) -> ScaleDiff:
        """Return the defaults: level 0 is plain sampling."""
        return ScaleDiff()

    def at_start(self) -> ScaleDiff:
        """Return the method with the restart only."""
        return ScaleDiff(restart=self.restart)

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at `restart` of the schedule."""
        return schedule.step_at(self.restart)

    def mixed_band(self, grid: Size, base_grid: Size) -> tuple[Size, BandFilter]:
        """Return the low band of a grid of latent cells, at least one row and column; structure guidance has it too."""
        return (max(1, int(grid[0] * self.band)), max(1, int(grid[1] * self.band))), self.band_filter

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield patch attention above level 0."""
        if moment.level.is_base or not self.patches_only:
            return
        yield patching(moment, jitter=self.jitter)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the noise prediction, its x0 pulled to the low band of the reference above level 0."""
        noise_pred = denoiser(latents, moment.step, moment.schedule)
        level = moment.level
        if level.reference is None or level.factor <= 1.0 or not self.structure:
            return noise_pred
        held = level.reference, self.weight_at(moment), *self.mixed_band(level.latent_hw, level.latent_hw)
        return guide_structure(noise_pred, latents, moment.sigma, *held, level.cell_codec)

    def weight_at(self, moment: Moment) -> float:
        """Return the weight of the guidance, (1 - a_i) / (1 - a_start) with a = alpha_cumprod: 1 at the restart.

        For a flow model it is sigma.
        """
        if moment.schedule.prediction_type == "flow":
            return moment.sigma
        first = moment.schedule.sigmas[self.restart_step(moment.schedule)]
        return _noise_share(moment.sigma) / _noise_share(first)


def _noise_share(sigma: float) -> float:
    """1 - alpha_cumprod of a noise level."""
    return sigma**2 / (1.0 + sigma**2)
