"""ScaleCrafter (arXiv:2310.07702): one level at the target size, with dilated convolutions.

For the first part of the schedule listed convolutions are re-dilated (`redilation`), by factors that may fall step by
step. Where the factors are large, guidance is damped: it starts from the unguided estimate of a weaker net, which has
less noise in it (Noise-damped Classifier-free Guidance),

    eps = eps_weak(negative) + g (eps_strong(positive) - eps_strong(negative)),

so the weaker net runs on the negative rows only: three rows for each picture in place of two. `settings` has the
released layers and factors; a field that is None takes them from there.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from freescale.dilation import convs_under
from freescale.methods.base import Method
from freescale.methods.scalecrafter.redilation import factors_under, redilate_convs
from freescale.methods.scalecrafter.settings import Layers, Setting, setting_for, topology_of
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.solvers import Solver
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class ScaleCrafter(Method):
    """Re-dilation, noise-damped guidance and, if asked, convolution dispersion; stops are shares of the schedule."""

    name: ClassVar[str] = "scalecrafter"
    any_unet: ClassVar[bool] = False

    layers: Layers | None = None  # (block or convolution, factor)
    dilate_stop: float | None = None  # released: 0.4 to 0.74
    progressive: bool | None = None  # released: from 2048 x 4096 on
    ndcfg_layers: Layers | None = None  # re-dilated in the weaker net; the paper's weaker net has none
    ndcfg_stop: float | None = None  # 0: plain guidance
    disperse_layers: tuple[str, ...] | None = None
    disperse_stop: float = 0.0  # off in every released setting, though the paper has it
    disperse_closeness: float = 0.05  # eta of Convolution Dispersion: how close to the kernel at its own scale
    freeu: tuple[float, float, float, float] | None = (1.1, 1.2, 0.6, 0.4)  # b1, b2, s1, s2; released for SDXL

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("dilate_stop", "ndcfg_stop", "disperse_stop"):
            if (value := getattr(self, name)) is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, allowed: 0 to 1")
        for name in ("layers", "ndcfg_layers"):
            if any(factor < 1.0 for _, factor in getattr(self, name) or ()):
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: factors of 1 or more")
        if self.ndcfg_layers is not None and self.ndcfg_stop is None:
            raise ValueError("ndcfg_stop is None with ndcfg_layers given, allowed: a share of the schedule")
        if not self.disperse_closeness >= 0.0:
            raise ValueError(f"disperse_closeness is {self.disperse_closeness}, allowed: 0 or more")

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM with eta = 1, as released."""
        return "ddim", 1.0

    def changes(self, unet: nn.Module, moment: Moment) -> Iterator[Patch]:
        """Yield the changes of both nets; every layer that is named must be there, whether a step uses it or not."""
        named = (block for layers in (self.layers, self.ndcfg_layers) for block, _ in layers or ())
        for block in (*named, *(self.disperse_layers or ())):
            convs_under(unet, block)
        setting = self.setting_at(unet, moment)
        yield self.strong(unet, setting, moment)
        yield self.weak(unet, setting, moment)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction of the re-dilated UNet, noise-damped in the first steps."""
        schedule, step = moment.schedule, moment.step
        setting = self.setting_at(denoiser.network, moment)
        with patched(denoiser.network, [self.strong(denoiser.network, setting, moment)]):
            if not denoiser.is_guided(step, schedule) or step >= schedule.step_at(setting.ndcfg_stop):
                return denoiser(latents, step, schedule)
            negative, positive = denoiser.pair(latents, step, schedule)
        with patched(denoiser.network, [self.weak(denoiser.network, setting, moment)]):
            (damped,) = denoiser.passes(latents, step, schedule, "negative")
        return schedule.to_noise(denoiser.combine(negative, positive, start=damped), latents, step)

    def setting_at(self, unet: Any, moment: Moment) -> Setting:
        """Return the setting of this UNet and size, with the method's own fields where they are not None."""
        names = [field.name for field in dataclasses.fields(Setting)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(setting_for(unet, moment.level), **given)

    def strong(self, unet: Any, setting: Setting, moment: Moment) -> Patch:
        """Return the patch for both sides of the guidance: re-dilation, and dispersion up to `disperse_stop`."""
        layers = layers_at(setting.layers, setting.dilate_stop, setting.progressive, moment)
        dispersed: dict[str, float] = {}
        if moment.step < moment.schedule.step_at(self.disperse_stop):
            blocks = topology_of(unet).dispersed if self.disperse_layers is None else self.disperse_layers
            dispersed = factors_under(unet, ((block, 1.0) for block in blocks))
        return redilate_convs(factors_under(unet, layers), dispersed, self.disperse_closeness)

    def weak(self, unet: Any, setting: Setting, moment: Moment) -> Patch:
        """Return the patch for the unguided estimate: weaker re-dilation."""
        layers = layers_at(setting.ndcfg_layers, setting.ndcfg_stop, setting.progressive, moment)
        return redilate_convs(factors_under(unet, layers))


def layers_at(layers: Layers, stop: float, progressive: bool, moment: Moment) -> Layers:
    """Return the layers with their factors at this step, none from `stop` on."""
    end = moment.schedule.step_at(stop)
    if moment.step >= end:
        return ()
    if not progressive:
        return layers
    return tuple((block, progressive_factor(factor, moment.step, end)) for block, factor in layers)


def progressive_factor(factor: float, step: int, end: int) -> float:
    """Return max(ceil(d (end - step) / end), 2): the factor falls in whole numbers and ends at 2."""
    return float(max(math.ceil(factor * (end - step) / end - 1e-9), 2))
