"""What a high-resolution method may change. Each default changes nothing: a method's file holds its paper's ideas.

A method is a frozen dataclass and its fields are its configuration. It holds no state: everything follows from the
`Moment`, so any step of any level can be repeated by itself.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the specs resolve the hints of a method
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from freescale.backbones import BackboneKind  # noqa: TC001
from freescale.cascade import CELL
from freescale.flow_levels import ShiftRules  # noqa: TC001
from freescale.long_videos import video_noise
from freescale.moment import Moment
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor, nn

    from freescale.cascade import Level, Size
    from freescale.enlarge import Interpolation, PictureFilter
    from freescale.guidance import Denoiser
    from freescale.schedule import Schedule
    from freescale.solvers import Solver
    from freescale.structure import BandFilter
    from freescale.unet_patches import Patch

TRAJECTORY = "x0."
"""What names in `Moment.extra` begin with that a stage hands to the level above: its x0, one a step, in their order."""

FeatureLevels = Literal["none", "base", "all"]
"""Levels at which a method goes with DeepCache: `base` is level 0."""


LATER = "later"


def later(default: Any) -> Any:
    """Return a field that came after others: a record of a method leaves it out at its default, so that keys stay."""
    return field(default=default, metadata={LATER: True})


def of_reference(default: Any = None) -> Any:
    """Return a field of how a level's reference is made and of nothing else, so that no denoising depends on it."""
    return field(default=default, metadata={"of_reference": True, LATER: True})


@dataclass(frozen=True)
class Method:
    """Plain sampling at the target size."""

    name: ClassVar[str] = "method"
    version: ClassVar[int] = 1  # raised when the arithmetic changes
    video: ClassVar[bool] = True  # whether it can make videos
    by_views: ClassVar[bool] = False  # whether it calls the UNet for many views of equal size in a step
    steady: ClassVar[bool] = False  # whether all steps of a stage cost the same
    any_unet: ClassVar[bool] = True  # whether it works in every UNet; else `check_unet` says whether it does
    anchored: ClassVar[bool] = False  # whether the levels above the first need level 0's latents: `Level.anchor`
    asks_sizes: ClassVar[bool] = False  # whether they need the sizes of all levels: `Level.sizes`
    asks_growth: ClassVar[bool] = False  # whether level 0 depends on whether levels follow: `Level.grows`
    asks_vae: ClassVar[bool] = False  # whether steps above level 0 decode and encode: `Level.codec`, `uses_vae`
    filters: ClassVar[bool] = False  # whether they filter or enlarge latents in a step: `Level.cell_codec`
    in_pixels: ClassVar[bool] = False  # whether they are the picture of the level below, enlarged and no more
    backbones: ClassVar[frozenset[BackboneKind]] = frozenset({"unet"})  # what it can be used with
    only: ClassVar[Mapping[BackboneKind, Mapping[str, Any]]] = {}  # the one value that a field has with a backbone
    asks_trajectory: ClassVar[bool] = False  # whether a level needs the x0 of every step below: `Level.trajectory`
    keeps_features: ClassVar[FeatureLevels] = "none"  # where the UNet is one and the same but for `switches`

    def check_choices(self, choices: Mapping[str, Sequence[str | None]]) -> None:
        """Raise `ValueError` for a field whose value is none of its `choices`, with all of them."""
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} is {value!r}, allowed: {', '.join(map(str, allowed))}")

    def check_shares(self, name: str) -> None:
        """Raise `ValueError` for a field that is no list of shares, 0 to 1."""
        if not (value := getattr(self, name)) or not all(0.0 <= each <= 1.0 for each in value):
            raise ValueError(f"{name} is {value}, allowed: one or more numbers from 0 to 1")

    def check_guidance(self, name: str = "guidance") -> None:
        """Raise `ValueError` for a field that is no list of guidance scales."""
        if not (value := getattr(self, name)) or not all(0.0 <= each <= 50.0 for each in value):
            raise ValueError(f"{name} is {value}, allowed: one or more numbers from 0 to 50")

    def check_backbone(self, kind: BackboneKind) -> None:
        """Raise `ValueError` for a kind of network that the method has no meaning for, or that a field has none for."""
        if kind not in self.backbones:
            raise ValueError(
                f"{self.name!r} is for {' and '.join(sorted(self.backbones))} models, not for {kind} models"
            )
        for name, allowed in self.only.get(kind, {}).items():
            if (value := getattr(self, name)) != allowed:
                raise ValueError(f"{name} is {value!r}, allowed: {allowed!r} with {kind} models")

    @property
    def needs(self) -> Mapping[type, str]:
        """What the backbone of a transformer must be able to do, as protocols, and which value does without it."""
        return {}

    @classmethod
    def check(cls, latents: Tensor) -> None:
        """Raise for latents of a video, (B, C, F, h, w), where the method is for images only."""
        if latents.ndim == 5 and not cls.video:
            raise ValueError(f"method is {cls.name!r}, allowed for video: one that is not for images only")

    @property
    def upsample(self) -> Literal["rgb", "latent", "mixed"]:
        """Where one level's result is enlarged to be the next one's reference; `mixed`: the low band as latents."""
        return "rgb"

    def mixed_band(self, grid: Size, base_grid: Size) -> tuple[Size, BandFilter]:
        """Return (rows, columns) of the low band of a `mixed` reference of `grid` latent cells, and its filter.

        `base_grid` are level 0's cells. Raises `NotImplementedError` in a method without one.
        """
        raise NotImplementedError

    @property
    def picture_filter(self) -> PictureFilter:
        """How pixels are enlarged."""
        return "bicubic"

    @property
    def clamps(self) -> bool:
        """Whether pixels are cut to [-1, 1] before they are enlarged."""
        return False

    @property
    def sharpening(self) -> tuple[float, float] | None:
        """Amount and deviation (pixels) of the unsharp mask over enlarged pixels; None: without one."""
        return None

    @property
    def upscaler(self) -> str | None:
        """A file with a network that enlarges pixels in place of `picture_filter`, which a field of this name sets."""
        return None

    @property
    def interpolation(self) -> Interpolation | None:
        """How latents are enlarged where `upsample` is `latent`; None: bicubic."""
        return None

    @property
    def posterior(self) -> Literal["sample", "mode"]:
        """What is taken from the VAE encoder's distribution to be the reference."""
        return "sample"

    @property
    def freeu(self) -> tuple[float, float, float, float] | None:
        """FreeU's scales (b1, b2, s1, s2), which a field of this name sets; None: without FreeU.

        The loop applies it at every step, before the method's own patches (`freescale/freeu.py`).
        """
        return None

    @property
    def thins(self) -> bool:
        """Whether the method goes with thinned keys and values (`freescale/todo.py`) at every level."""
        return False

    def switches(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the steps at which a level's UNet becomes another one: features of the step before are not its own."""
        return ()

    @property
    def shift_rule(self) -> ShiftRules:
        """Which noise levels a flow model has above its training size, where a spec does not say."""
        return "cap"

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """The guidance scale of each level, the last one of all above, where a spec has none; empty: the model's."""
        return ()

    @property
    def solver(self) -> tuple[Solver, float] | None:
        """The (solver, eta) that the method was published with; None: those of the model's scheduler."""
        return None

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the sizes of all levels in pixels, the last being `size`, each a multiple of `cell`."""
        return (size,)

    def told_size(self, sizes: Sequence[Size], base_size: Size, level: int = 0) -> Size:
        """Return the size in pixels that a size-conditioned model is told at a level: that of the first.

        FreeScale's release tells the training size at every level; a method of one level tells its own size.
        """
        return sizes[0]

    def at_base(self) -> Method:
        """Return the method with every field that level 0 does not depend on at its default.

        Two methods for which it is equal share their level 0.
        """
        return self

    def at_start(self) -> Method:
        """Return the method with every field that `start` does not depend on at its default."""
        return self

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the timesteps and noise levels of one level (`freescale/walk.py`): those of the whole schedule.

        `sizes` are those of all levels, in pixels. The other hooks are given what comes back.
        """
        return schedule

    def restart_step(self, schedule: Schedule) -> int:
        """Return the step at which levels above the first start."""
        return 0

    def detail_step(self, schedule: Schedule) -> int:
        """Return the step from which only detail is added; the steps from there on are a stage of their own."""
        return len(schedule)

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield the method's own changes to the UNet for this step; FreeU is not among them."""
        yield from ()

    def changes(self, unet: nn.Module, moment: Moment) -> Iterator[Patch]:
        """Yield every change to this UNet that the step may make: `patches`, and those that `predict` makes itself.

        Raises `ValueError` where the method does not work with the UNet at this size.
        """
        yield from self.patches(moment)

    def check_unet(self, unet: nn.Module, level: Level, schedule: Schedule, steps: Sequence[int]) -> None:
        """Make and undo the changes of these steps; the UNet may be on the meta device, and nothing is computed.

        Raises `ValueError` where the method does not work with the UNet at the size of the level.
        """
        for step in steps:
            with patched(unet, self.changes(unet, Moment(level, step, schedule, seed=0))):
                pass

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents that this step starts from, in the shape and dtype of `latents`."""
        return latents

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the noise prediction (eps) for VE `latents`, in their shape; the UNet is patched."""
        return denoiser(latents, moment.step, moment.schedule)

    def uses_vae(self, step: int, schedule: Schedule) -> bool:
        """Return whether a step above level 0 decodes and encodes once, where the method asks for the VAE."""
        return False

    def kept(self, moment: Moment) -> tuple[str, ...]:
        """Return the names of the tensors, in the shape of the latents, that `moment.extra` has before this step."""
        return ()

    def finish(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the level's result, given the latents after its last step; part of that step."""
        return latents

    def start(self, shape: Sequence[int], moment: Moment, dtype: torch.dtype | None = None) -> Tensor:
        """Return the first latents (`shape`) of a level: noise, or its reference noised to the restart step.

        Raises `ValueError` above level 0 where the level has no reference or no noise.
        """
        level = moment.level
        if level.reference is None or level.noise is None:
            if not level.is_base:
                raise ValueError(f"level {level.index} lacks reference or noise, allowed: both above level 0")
            noise = video_noise(shape, level.frames, moment.seed, "init_noise", level.index, stride=level.frame_stride)
            latents = noise * moment.schedule.init_sigma
        else:
            latents = moment.schedule.noised(level.reference, level.noise, self.restart_step(moment.schedule))
        return latents if dtype is None else latents.to(dtype)
