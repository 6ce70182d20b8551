"""FreeScale (arXiv:2412.09626): tuning-free scale fusion on a self-cascade.

Level 0 is ordinary sampling at the training size. Every further level enlarges the result, noises it to the
restart step and samples on, with the enlarged latents as an anchor whose weight falls (`detail`), self-attention
fused from two scales (`scale_fusion`) and, up to a step, dilated convolutions (`dilation`). At a scale that rounds to
1 the last two do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch

from freescale.backbones.changes import Temperature, fusing, reaching
from freescale.cascade import CELL, cascade_sizes
from freescale.detail import detail_weight, reference_weight
from freescale.dilation import DilatedLayers, DilationRule, dilation_factor, restrained_dilation
from freescale.enlarge import Interpolation
from freescale.forward_process import generator
from freescale.frequency import BlurBorder, gaussian_taps
from freescale.methods.base import FeatureLevels, Method, later
from freescale.positions import PositionRule
from freescale.scale_fusion import Bands, Fusion
from freescale.windows import Grid, WindowBorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from freescale.backbones import BackboneKind
    from freescale.cascade import Level, Size
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch

_ONLY: Mapping[BackboneKind, Mapping[str, Any]] = {
    "unet": {"positions": "none", "temperature": "off"},
    "flow": {"dilate": False, "channel_blur": False, "border": "clamp", "fast": False, "freeu": None},
}


@dataclass(frozen=True)
class FreeScale(Method):
    """Scale fusion, restrained dilation and detail control; steps are given as shares of the schedule."""

    name: ClassVar[str] = "freescale"
    steady: ClassVar[bool] = True
    backbones = frozenset({"unet", "flow"})
    only = _ONLY
    keeps_features: ClassVar[FeatureLevels] = "all"

    detail_scale: float = 2.0  # alpha: with a larger one the reference's weight falls sooner; the paper has 1 at 8k
    restart: float = 0.3  # 15 of 50 steps, timestep 681 (paper: K = 700); turbo: 0.5
    dilation: tuple[float, float] = (0.0, 0.7)  # from, to: 35 of 50 (released as an absolute step)
    dilate: bool = True
    dilated_layers: DilatedLayers = "down_mid"
    dilation_rule: DilationRule = "scale"  # released: width
    fusion: bool = True
    fast: bool = False  # global attention within interleaved phases
    bands: Bands = "fused"
    channel_blur: bool = True  # as released; the paper blurs the image plane
    blur_kernel: Literal["scale", "paper"] | int = "scale"  # 2 n - 1; the paper's text: 2 H W / (Hb Wb) - 1
    blur_sigma: float = 1.0  # tokens
    blur_border: BlurBorder = "zero"
    jitter: bool = True
    jitter_scope: Literal["block", "step"] = "block"  # one draw for each layer, or for each grid of a step
    border: WindowBorder = "clamp"  # released: sink
    lerp: bool = True  # the anchor
    upsample: Literal["rgb", "latent"] = "rgb"  # latent for video
    interpolation: Interpolation | None = None  # of latents; None: bicubic; bilinear for video
    posterior: Literal["sample", "mode"] = "sample"
    freeu: tuple[float, float, float, float] | None = (1.1, 1.2, 0.6, 0.4)  # b1, b2, s1, s2
    positions: PositionRule = later("none")  # of a flow model's tokens
    temperature: Temperature = later("off")

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.restart < 1.0:
            raise ValueError(f"restart is {self.restart}, allowed: 0 to below 1")
        if not 0.0 <= self.dilation[0] <= self.dilation[1] <= 1.0:
            raise ValueError(f"dilation is {self.dilation}, allowed: two rising shares between 0 and 1")
        if self.detail_scale < 0.0:
            raise ValueError(f"detail_scale is {self.detail_scale}, allowed: 0 or more")
        kernel = self.blur_kernel
        if kernel not in ("scale", "paper") and not isinstance(kernel, int):
            raise ValueError(f"blur_kernel is {kernel!r}, allowed: scale, paper, or an odd number")
        gaussian_taps(kernel if isinstance(kernel, int) else 1, self.blur_sigma)
        self.check_choices(_CHOICES)

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def at_base(self) -> FreeScale:
        """Return the method with FreeU's field only: level 0 depends on no other."""
        return FreeScale(freeu=self.freeu)

    def at_start(self) -> FreeScale:
        """Return the method with the restart only: a level starts from its reference, noised to that step."""
        return FreeScale(restart=self.restart)

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at `restart` of the schedule; the steps before would remake what the reference has."""
        return schedule.step_at(self.restart)

    def detail_step(self, schedule: Schedule) -> int:
        """Return the step where dilation ends."""
        return schedule.step_at(self.dilation[1])

    def switches(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the first step with dilation and the first one without."""
        return tuple(schedule.step_at(share) for share in self.dilation) if self.dilate else ()

    @property
    def thins(self) -> bool:
        """Unless global attention is in phases or absent; without fusion attention is the model's."""
        return not self.fusion or (not self.fast and self.bands != "local")

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield scale fusion and dilation above level 0 where the scale rounds to 2 or more; nothing at level 0."""
        level, schedule = moment.level, moment.schedule
        if level.is_base:
            return
        yield from reaching(self.positions, self.temperature, level)
        if round(level.factor) < 2:
            return
        if self.fusion:
            yield fusing(self.fusion_at(moment), level)
        if self.dilate and schedule.step_at(self.dilation[0]) <= moment.step < self.detail_step(schedule):
            factor = dilation_factor(level, self.dilation_rule)
            yield restrained_dilation(self.dilated_layers, factor, moment.compute.phase_convs)

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents interpolated towards the reference noised to this step; at the restart they equal it."""
        level = moment.level
        if level.reference is None or level.noise is None or not self.lerp:
            return latents
        if moment.step == self.restart_step(moment.schedule):
            return latents
        anchor = moment.schedule.noised(level.reference.to(latents), level.noise, moment.step)
        kappa = detail_weight(moment.timestep, moment.schedule.num_train_timesteps)
        exponent = self.detail_scale if level.detail_map is None else level.detail_map
        return torch.lerp(latents, anchor, reference_weight(kappa, exponent).to(latents))

    def fusion_at(self, moment: Moment) -> Fusion:
        """Return what scale fusion does at this level and step."""
        level, seed, step = moment.level, moment.seed, moment.step
        rows, columns = (max(1, round(scale)) for scale in level.scale)

        def jitter(name: str, grid: Grid) -> torch.Generator:
            """Return the stream for one layer, or for all layers of one grid."""
            layer = [name] if self.jitter_scope == "block" else grid
            return generator(seed, "jitter", level.index, step, *layer)

        return Fusion(
            scale=level.scale,
            taps=gaussian_taps(self.kernel_at(level), self.blur_sigma),
            channel_blur=self.channel_blur,
            blur_border=self.blur_border,
            border=self.border,
            bands=self.bands,
            phases=(rows, columns) if self.fast else (1, 1),
            jitter=jitter if self.jitter else None,
            window_rows=moment.compute.window_rows,
            thinning=level.thinning,
        )

    def kernel_at(self, level: Level) -> int:
        """Return the length of the blur kernel in tokens, an odd number."""
        if isinstance(self.blur_kernel, int):
            return self.blur_kernel
        growth = level.factor if self.blur_kernel == "scale" else level.scale[0] * level.scale[1]
        return 2 * max(1, round(growth)) - 1


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "dilated_layers": get_args(DilatedLayers),
    "dilation_rule": get_args(DilationRule),
    "bands": get_args(Bands),
    "blur_border": get_args(BlurBorder),
    "border": get_args(WindowBorder),
    "jitter_scope": ("block", "step"),
    "upsample": ("rgb", "latent"),
    "interpolation": (*get_args(Interpolation), None),
    "posterior": ("sample", "mode"),
    "positions": get_args(PositionRule),
    "temperature": get_args(Temperature),
}
