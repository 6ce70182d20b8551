"""What a high-resolution method may change. Each default changes nothing: a method's file is its paper.

A method is a frozen dataclass and its fields are its configuration. It holds no state: everything follows
from the `Moment`, which makes any step of any level repeatable by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from freescale.forward_process import renoise
from freescale.long_videos import video_noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from freescale.cascade import Size
    from freescale.enlarge import Interpolation
    from freescale.guidance import Denoiser
    from freescale.sampling import Moment, Schedule, Solver
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class Method:
    """Plain sampling at the target size."""

    name: ClassVar[str] = "method"
    version: ClassVar[int] = 1  # raised when the arithmetic changes
    video: ClassVar[bool] = True  # whether it can make videos
    by_views: ClassVar[bool] = False  # whether it calls the UNet many times a step, alike but for what it sees
    steady: ClassVar[bool] = False  # whether all steps of a stage cost the same
    anchored: ClassVar[bool] = False  # whether the levels above the first need level 0's latents: `Level.anchor`

    @classmethod
    def check(cls, latents: Tensor) -> None:
        """Raise for latents of a video, (B, C, F, h, w), where the method is for images only."""
        if latents.ndim == 5 and not cls.video:
            raise ValueError(f"method is {cls.name!r}, allowed for video: one that is not for images only")

    @property
    def upsample(self) -> Literal["rgb", "latent"]:
        """Where one level's result is enlarged to be the next one's reference."""
        return "rgb"

    @property
    def interpolation(self) -> Interpolation | None:
        """How latents are enlarged where `upsample` is latent; None: bicubic."""
        return None

    @property
    def posterior(self) -> Literal["sample", "mode"]:
        """What is taken from the VAE encoder's distribution for the reference."""
        return "sample"

    @property
    def solver(self) -> tuple[Solver, float] | None:
        """What the method was published with, (solver, eta); None: whatever the model's scheduler is."""
        return None

    def sizes(self, size: Size, base_size: Size) -> tuple[Size, ...]:
        """Return the sizes of all levels, the last being `size`."""
        return (size,)

    def told_size(self, sizes: Sequence[Size], base_size: Size) -> Size:
        """Return the size, of all levels, that a size-conditioned model is told throughout: the first one's.

        A cascade keeps its first size at every level, as released; one level is told its own.
        """
        return sizes[0]

    def at_base(self) -> Method:
        """Return the method with every field that level 0 does not depend on at its default.

        Two methods that agree here share their level 0.
        """
        return self

    def at_start(self) -> Method:
        """Return the method with every field that `start` does not depend on at its default."""
        return self

    def restart_step(self, schedule: Schedule) -> int:
        """Return the first step of the levels above the first."""
        return 0

    def detail_step(self, schedule: Schedule) -> int:
        """Return the step from which only detail is added: a good place to stop, look, and redo from."""
        return len(schedule)

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield the changes to the UNet for this step."""
        yield from ()

    def blend(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the latents that this step starts from."""
        return latents

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the noise prediction for the latents; the UNet is patched."""
        return denoiser(latents, moment.step, moment.schedule)

    def finish(self, latents: Tensor, moment: Moment) -> Tensor:
        """Return the level's result, given the latents after its last step; part of that step."""
        return latents

    def start(self, shape: Sequence[int], moment: Moment, dtype: torch.dtype | None = None) -> Tensor:
        """Return the first latents of a level: noise, or its reference noised to the restart step."""
        level = moment.level
        if level.reference is None or level.noise is None:
            if not level.is_base:
                raise ValueError(f"level {level.index} lacks reference or noise, allowed: both above level 0")
            noise = video_noise(shape, level.frames, moment.seed, "init_noise", level.index, stride=level.frame_stride)
            latents = noise * moment.schedule.init_sigma
        else:
            sigma = moment.schedule.sigmas[self.restart_step(moment.schedule)]
            latents = renoise(level.reference, level.noise, sigma)
        return latents if dtype is None else latents.to(dtype)
