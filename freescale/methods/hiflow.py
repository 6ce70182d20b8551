"""HiFlow (arXiv:2504.06232): every step above the training size is aligned to the step below at the same noise.

Level k starts from the enlarged picture of the level below, noised: the first alignment. All x0 that the level below
predicted on its way are kept. At each step the one of the same noise level, enlarged, is the reference, and two more
alignments hold, of the direction and of the acceleration:

    x0 <- x0 + alpha (L(x0_ref) - L(x0))
    v <- v + beta ((v' - v_ref') - (v - v_ref)),  v_ref = (x - x0_ref) / sigma,  ' of the step before

L is Butterworth's low-pass. Published, for FLUX.1 [dev]: the alignments, order 4, a cut-off of 0.4 (released: 0.2),
the shift of the base at all levels, guidance 3.5, 4.5 and 6, the last 16 and 10 of 30 steps, alpha 1 and 0.25, beta
0.5, both times the share of steps that are left, theta times 10, a temperature, a grid of tokens that moves by one
cell at every other step, and a reference picture that is sharpened with a radius of 1. Ours: that share is of the
level's own steps, x0 is enlarged as latents by bicubic interpolation, the amount of sharpening is 1, the temperature
counts image tokens alone, and the moved grid wraps round.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.backbones.changes import Temperature, reaching
from freescale.cascade import CELL, cascade_sizes
from freescale.frequency import butterworth_mask, fourier_filter
from freescale.methods.base import TRAJECTORY, Method
from freescale.positions import PositionRule
from freescale.stagger import staggered
from freescale.vae.codec import by_cells, enlarged
from freescale.walk import span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from freescale.cascade import Level, Size
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch

LAG = "lag"
"""What `Moment.extra` has from the step before: its velocity minus that of the reference."""


@dataclass(frozen=True)
class HiFlow(Method):
    """A cascade that follows the level below step by step, in its low band and in its acceleration."""

    name: ClassVar[str] = "hiflow"
    video: ClassVar[bool] = False
    asks_growth: ClassVar[bool] = True
    asks_sizes: ClassVar[bool] = True
    asks_trajectory: ClassVar[bool] = True
    backbones = frozenset({"flow"})
    filters: ClassVar[bool] = True

    restart: tuple[float, ...] = (0.4667, 0.6667)  # of each level above the first, the last of all above: 14, 20 of 30
    direction: tuple[float, ...] = (1.0, 0.25)  # alpha of each level above the first; 0: none
    acceleration: float = 0.5  # beta; 0: none
    cut_off: float = 0.2  # of the low-pass, in shares of the highest frequency; paper: 0.4
    order: int = 4
    guidance: tuple[float, ...] = (3.5, 4.5, 6.0)  # scale of each level, where the spec has none
    positions: PositionRule = "hiflow"
    temperature: Temperature = "entropy"
    stagger: bool = True  # every other step on a grid that is moved by a cell
    sharpen: float = 1.0  # amount of the unsharp mask over the enlarged picture; 0: none
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        self.check_shares("restart")
        self.check_shares("direction")
        if max(self.restart) >= 1.0 or any(later < before for before, later in itertools.pairwise(self.restart)):
            raise ValueError(f"restart is {self.restart}, allowed: shares below 1 that do not fall")
        if not 0.0 <= self.acceleration <= 1.0:
            raise ValueError(f"acceleration is {self.acceleration}, allowed: 0 to 1")
        if self.cut_off <= 0.0 or self.order < 1 or self.sharpen < 0.0:
            given = f"cut_off {self.cut_off}, order {self.order}, sharpen {self.sharpen}"
            raise ValueError(f"{given}, allowed: cut_off above 0, order of 1 or more, sharpen of 0 or more")
        self.check_guidance()
        self.check_choices(
            {
                "positions": get_args(PositionRule),
                "temperature": get_args(Temperature),
                "posterior": ("sample", "mode"),
            }
        )

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """The field."""
        return self.guidance

    @property
    def sharpening(self) -> tuple[float, float] | None:
        """The amount, and a deviation of one pixel."""
        return (self.sharpen, 1.0) if self.sharpen else None

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size, its doublings below the target, and the target."""
        return cascade_sizes(size, base_size, cell=cell)

    def at_base(self) -> HiFlow:
        """Return the defaults: level 0 is plain sampling, and a stage is told its guidance."""
        return HiFlow()

    def at_start(self) -> HiFlow:
        """Return the defaults: a level starts at the first noise level of its walk."""
        return HiFlow()

    def walk(self, schedule: Schedule, level: int, sizes: Sequence[Size]) -> Schedule:
        """Return the schedule for level 0, above it the steps from the level's restart on."""
        first = schedule.step_at(_of(self.restart, level)) if level else 0
        return span(schedule, first, len(schedule)) if first else schedule

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield positions and temperature above level 0."""
        level = moment.level
        if not level.is_base and level.factor > 1.0:
            yield from reaching(self.positions, self.temperature, level)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the velocity, above level 0 aligned to that of the level below; its x0 is kept for the level above."""
        level = moment.level
        if level.is_base or level.factor <= 1.0:
            velocity = denoiser(latents, moment.step, moment.schedule)
        else:
            velocity = staggered(denoiser, latents, moment, moves=self.stagger)
            if level.trajectory is not None:
                velocity = self.aligned(velocity, latents, moment, level.trajectory)
        if _is_followed(level):
            moment.extra[_name(moment.step)] = latents - moment.sigma * velocity
        return velocity

    def aligned(self, velocity: Tensor, latents: Tensor, moment: Moment, trajectory: Tensor) -> Tensor:
        """Return the velocity after both alignments; weights of 0 change no bit."""
        level, sigma, steps = moment.level, moment.sigma, len(moment.schedule)
        left = 1.0 - moment.step / steps
        below = trajectory[:, trajectory.shape[1] - steps + moment.step].to(latents)
        reference = enlarged(below, level.latent_hw, level.cell_codec)
        if alpha := left * _of(self.direction, level.index):
            away = reference - (latents - sigma * velocity)
            mask = butterworth_mask(level.latent_hw, self.cut_off, self.order, latents.dtype, latents.device)
            velocity = velocity - (alpha / sigma) * by_cells(level.cell_codec, lambda x: fourier_filter(x, mask), away)
        to_reference = (latents - reference) / sigma
        if (beta := left * self.acceleration) and LAG in moment.extra:
            velocity = velocity + beta * (moment.extra[LAG] - (velocity - to_reference))
        moment.extra[LAG] = velocity - to_reference
        return velocity

    def kept(self, moment: Moment) -> tuple[str, ...]:
        """Return the difference of the step before, and x0 of all steps before for the level above."""
        steps = range(moment.step)
        lag = (LAG,) if steps and not moment.level.is_base else ()
        return (*lag, *(_name(step) for step in steps if _is_followed(moment.level)))


def _of(values: tuple[float, ...], level: int) -> float:
    """Return the value of a level above the first."""
    return values[min(level, len(values)) - 1]


def _name(step: int) -> str:
    return f"{TRAJECTORY}{step:04d}"


def _is_followed(level: Level) -> bool:
    return level.grows if level.is_base else level.index + 1 < len(level.sizes)
