"""`swift` and `draft`, ours: few steps at the last size, from the x0 that level 0 predicts before its end.

What a level above the first does is put together from published parts:

* level 0 is left early and hands over its x0 (relay: RectifiedHR, arXiv:2503.02537);
* sizes jump to the target up to four times the training size, where a cascade would double;
* a level starts at a noise level of its own and takes few steps, in equal strides of timesteps, to 0;
* the low band of every x0 is that of the reference (structure guidance), and the reference has the low band of enlarged
  latents (frequency mixing): `structure`, after ScaleDiff (arXiv:2510.25818), with all that level 0's grid can hold;
* self-attention is in windows of the training size (`patch_attention`, ScaleDiff), and dilation acts in the first steps
  (`dilation`, FreeScale, arXiv:2412.09626).

On transformers dilation has no meaning, and the rest holds as it is: latents minus sigma times the prediction are x0
there, too, and noise levels of equal strides are even ones, unshifted.

The two differ in their numbers alone. Those here are proposals for SDXL within the ranges of these papers, and not
measured on it; a model's card has its own (`docs/lab/results.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from freescale.backbones.changes import patching
from freescale.cascade import CELL, cascade_sizes
from freescale.dilation import DilatedLayers, dilation_factor, restrained_dilation
from freescale.guidance import scaled_guidance
from freescale.methods.base import FeatureLevels, Method, of_reference
from freescale.structure import BandFilter, guide_structure
from freescale.walk import descent, relay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from freescale.backbones import BackboneKind
    from freescale.cascade import Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch


_ONLY: Mapping[BackboneKind, Mapping[str, Any]] = {"flow": {"dilation": 0.0}}


@dataclass(frozen=True)
class Swift(Method):
    """Relay, jump, structure guidance and patch attention: a few steps above level 0."""

    name: ClassVar[str] = "swift"
    video: ClassVar[bool] = False
    keeps_features: ClassVar[FeatureLevels] = "base"
    backbones = frozenset({"unet", "flow"})
    filters: ClassVar[bool] = True
    only = _ONLY

    leave: float = 0.8  # share of level 0's steps that are taken; 1: all
    growth: float = 4.0  # of a level over the one below, at most
    start_timestep: float = 600.0  # timestep that a level above the first starts at; between 0 and the last one
    steps: int = 8  # of such a level
    guidance: float = 1.0  # factor of the guidance scale there; 0: no guidance, one UNet call for two
    patches_only: bool = True  # self-attention in patches; false: over the whole grid
    jitter: bool = True  # of the patches, above twice the training size
    dilation: float = 0.5  # share of a level's steps that are dilated, the first ones
    dilated_layers: DilatedLayers = "down_mid"
    structure: float = 1.0  # weight of structure guidance; 0: none
    mix: bool = True  # the reference has the low band of enlarged latents
    band: float = 1.0  # the low band, as a share of level 0's grid on each axis
    band_filter: BandFilter = "bilinear"
    posterior: Literal["sample", "mode"] = "sample"
    upscaler: str | None = of_reference()  # a file of a network that enlarges; without one bicubic

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("leave", "band"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: above 0, to 1")
        for name in ("structure", "dilation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 to 1")
        if self.growth <= 1.0:
            raise ValueError(f"growth is {self.growth}, allowed: above 1")
        if self.steps < 1 or self.start_timestep <= 0.0 or self.guidance < 0.0:
            given = f"steps {self.steps}, start_timestep {self.start_timestep}, guidance {self.guidance}"
            raise ValueError(f"{given}, allowed: steps of 1 or more, a start_timestep above 0, guidance of 0 or more")
        self.check_choices(_CHOICES)

    @property
    def upsample(self) -> Literal["rgb", "latent", "mixed"]:
        """Both, joined by frequency, with `mix`."""
        return "mixed" if self.mix else "rgb"

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, jumps of `growth` below the target, and the target."""
        return cascade_sizes(size, base_size, growth=self.growth, cell=cell)

    def at_base(self) -> Self:
        """Return the method with the share of steps only."""
        return type(self)(leave=self.leave)

    def at_start(self) -> Self:
        """Return the defaults: a level starts at the first noise level of its walk."""
        return type(self)()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the first steps of the schedule for level 0, else `steps` from `start` to 0."""
        if len(sizes) == 1:
            return schedule
        return descent(schedule, self.start_timestep, self.steps) if level else relay(schedule, self.left_at(schedule))

    def left_at(self, schedule: Schedule) -> int:
        """Return the number of steps that level 0 takes, at least one."""
        return max(1, schedule.step_at(self.leave))

    def mixed_band(self, grid: Size, base_grid: Size) -> tuple[Size, BandFilter]:
        """Return the low band: `band` of level 0's grid, at least one row and column."""
        return (max(1, round(base_grid[0] * self.band)), max(1, round(base_grid[1] * self.band))), self.band_filter

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield patch attention above level 0, and in a level's first steps dilation."""
        level = moment.level
        if level.is_base or level.factor <= 1.0:
            return
        if self.patches_only:
            yield patching(moment, jitter=self.jitter)
        if moment.step < moment.schedule.step_at(self.dilation):
            yield restrained_dilation(self.dilated_layers, dilation_factor(level), moment.compute.phase_convs)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction, above level 0 with its own guidance and with the low band of the reference."""
        level = moment.level
        if level.reference is None or level.factor <= 1.0:
            return denoiser(latents, moment.step, moment.schedule)
        noise_pred = scaled_guidance(denoiser, self.guidance)(latents, moment.step, moment.schedule)
        held = level.reference, self.structure, *self.mixed_band(level.latent_hw, level.base_hw)
        return guide_structure(noise_pred, latents, moment.sigma, *held, level.cell_codec)


@dataclass(frozen=True)
class Draft(Swift):
    """`swift` with two steps above level 0, without guidance and dilation."""

    name: ClassVar[str] = "draft"

    start_timestep: float = 249.0
    steps: int = 2
    guidance: float = 0.0
    dilation: float = 0.0


_CHOICES: dict[str, tuple[str, ...]] = {
    "dilated_layers": get_args(DilatedLayers),
    "band_filter": get_args(BandFilter),
    "posterior": ("sample", "mode"),
}
