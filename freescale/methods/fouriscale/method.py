"""FouriScale (arXiv:2403.12963): one level at the target size, with convolutions that are dilated and low-passed.

In the first part of the schedule the batch has three branches: negative, and the positive prompt twice. Two are dilated
and filtered strongly, which gives sound structure and little detail. The third is treated weakly and attends with the
queries and keys of the second, so it has both. Guidance goes from the first towards the third (FouriScale Guidance),

    eps = eps_strong(negative) + g (eps_weak(positive) - eps_strong(negative)).

Afterwards the branches would be equal, so plain guidance is all that is left.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from freescale.dilation import convs_under
from freescale.methods.base import Method
from freescale.methods.fouriscale.buckets import BucketRule, bucket_for, training_side, whole_scale
from freescale.methods.fouriscale.fourier_dilation import FourierDilation, fourier_dilate, share_attention_maps
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from freescale.cascade import Level, Size
    from freescale.deepcache import Side
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.solvers import Solver
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class Setting:
    """What was released for one kind of UNet; fall and stop are shares of the schedule."""

    layers: tuple[str, ...]
    floor: float
    weak_divisor: float
    dilate_fall: float = 0.4
    dilate_stop: float = 0.7


_SD_LAYERS = ("down_blocks.2", "down_blocks.3", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2")
SDXL = Setting(("down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1.resnets"), 0.6, 1.5)  # 21 convolutions
SD = Setting(_SD_LAYERS, 0.0, 1.0)  # 34


@dataclass(frozen=True)
class FouriScale(Method):
    """Low-passed dilation in two strengths; a field that is None has the released value for the kind of UNet."""

    name: ClassVar[str] = "fouriscale"
    any_unet: ClassVar[bool] = False
    video: ClassVar[bool] = False

    layers: tuple[str, ...] | None = None  # blocks or convolutions
    dilate_fall: float | None = None  # from here dilation falls, linearly to 1
    dilate_stop: float | None = None  # here it ends
    progressive: bool = True
    floor: float | None = None  # of the filters; SDXL 0.6, Stable Diffusion 0
    weak_divisor: float | None = None  # of the weak branch's dilation; SDXL 1.5, in the paper's text 1
    bucket_rule: BucketRule = "nearest"
    amplify: float = 1.0  # guidance up to `dilate_fall` is this many times as strong; a released option has 2.4
    freeu: tuple[float, float, float, float] | None = (1.1, 1.2, 0.6, 0.4)  # b1, b2, s1, s2; released for SDXL

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name in ("dilate_fall", "dilate_stop", "floor"):
            if (value := getattr(self, name)) is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, allowed: 0 to 1")
        for name in ("weak_divisor", "amplify"):
            if (value := getattr(self, name)) is not None and not value >= 1.0:
                raise ValueError(f"{name} is {value}, allowed: 1 or more")
        self.check_choices({"bucket_rule": get_args(BucketRule)})

    @property
    def solver(self) -> tuple[Solver, float]:
        """DDIM with eta = 1, as released."""
        return "ddim", 1.0

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the size that the target grows from: a size-conditioned model is told that one."""
        return bucket_for(sizes[-1], base_size, self.bucket_rule)

    def changes(self, unet: nn.Module, moment: Moment) -> Iterator[Patch]:
        """Yield the dilation of the released layers, or of those that are named, at its strongest."""
        base = self.base_for(unet, moment.level)
        scale = whole_scale(moment.level.size, base)
        setting = self.setting_for(unet, scale)
        names = tuple(name for layer in setting.layers for name in convs_under(unet, layer))
        yield fourier_dilate(names, self.treatment(setting, float(scale), moment.level.size, base, 1))
        yield share_attention_maps(1)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the prediction of the three branches, or plain guidance once they are equal."""
        unet, schedule, step = denoiser.network, moment.schedule, moment.step
        base = self.base_for(unet, moment.level)
        setting = self.setting_for(unet, whole_scale(moment.level.size, base))
        dilation = self.dilation_at(setting, whole_scale(moment.level.size, base), schedule, step)
        if dilation == 1.0:
            return denoiser(latents, step, schedule)
        names = tuple(name for layer in setting.layers for name in convs_under(unet, layer))

        def run(*sides: Side, weak_rows: int = latents.shape[0]) -> tuple[Tensor, ...]:
            """Return a raw output for each branch; the last `weak_rows` rows are those of the weak one."""
            treatment = self.treatment(setting, dilation, moment.level.size, base, weak_rows)
            sharing = [share_attention_maps(weak_rows)] if weak_rows else []
            with patched(unet, [fourier_dilate(names, treatment), *sharing]):
                return denoiser.passes(latents, step, schedule, *sides)

        if not denoiser.is_guided(step, schedule):
            return schedule.to_noise(run("positive", "positive")[1], latents, step)
        if denoiser.compute.split_guidance:
            (negative,), (_, positive) = run("negative", weak_rows=0), run("positive", "positive")
        else:
            negative, _, positive = run("negative", "positive", "positive")
        scale = self.amplify if step < schedule.step_at(setting.dilate_fall) else 1.0
        return schedule.to_noise(denoiser.combine(negative, positive, scale=scale), latents, step)

    def base_for(self, unet: Any, level: Level) -> Size:
        """Return the size that the target grows from: a bucket, or the square of a model that was told no sizes."""
        if level.factor <= 1.0:
            return level.size
        if unet.config.addition_embed_type == "text_time":
            return bucket_for(level.size, level.base_size, self.bucket_rule)
        return training_side(level.base_size), training_side(level.base_size)

    def setting_for(self, unet: Any, scale: int) -> Setting:
        """Return the released setting of this UNet and scale, with the method's own fields where they are not None.

        Raises `ValueError` for a UNet that has neither 3 nor 4 levels.
        """
        if (levels := len(unet.down_blocks)) not in (3, 4):
            raise ValueError(f"the UNet has {levels} levels, allowed: 3 (SDXL) or 4 (Stable Diffusion 1.5, 2.1)")
        released = SDXL if levels == 3 else SD
        if released is SD and scale <= 3:
            released = dataclasses.replace(SD, dilate_fall=0.2, dilate_stop=0.6)
        names = [field.name for field in dataclasses.fields(Setting)]
        return dataclasses.replace(
            released, **{name: value for name in names if (value := getattr(self, name)) is not None}
        )

    def dilation_at(self, setting: Setting, scale: int, schedule: Schedule, step: int) -> float:
        """Return the real-valued dilation: the scale, from `dilate_fall` on towards 1, which it is at `dilate_stop`."""
        fall, stop = schedule.step_at(setting.dilate_fall), schedule.step_at(setting.dilate_stop)
        if step >= stop:
            return 1.0
        if step < fall or not self.progressive:
            return float(scale)
        return max((scale - 1) * (stop - step) / (stop - fall) + 1.0, 1.0)

    def treatment(self, setting: Setting, dilation: float, size: Size, base: Size, weak_rows: int) -> FourierDilation:
        """Return what a step does; filters are applied on a canvas of whole multiples of the base size."""
        scale = whole_scale(size, base)
        canvas = (scale * base[0] / size[0], scale * base[1] / size[1])
        weak = math.ceil(max(dilation / setting.weak_divisor, 1.0) - 1e-9)
        return FourierDilation(dilation, weak, setting.floor, canvas, weak_rows)
