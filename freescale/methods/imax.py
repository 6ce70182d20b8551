"""I-Max (arXiv:2410.07536): from noise to the target in one go, pulled to the straight way to the enlarged picture.

The picture of the training size, enlarged, is the guide. The straight way from the latents to it is v_g = (x - guide)
/ sigma, and the low band of the model's velocity is drawn to that of v_g, by a weight that falls over the steps:

    v <- v + c (L(v_g) - L(v)),  c = (1 + cos(pi i / N)) / 2

L is the low band of one level of Haar's wavelet: the mean of 2 x 2 cells. Attention reaches farther by theta times
10, held to position interpolation from below, by a temperature, and by text that is repeated at the origin of every
grid of the training size. Every other step is on a grid of tokens that is moved by one cell.

Published, for FLUX.1 [dev]: all of this, 30 steps each, guidance 3.5 and 7, shifts 3 and 6. Ours: the temperature
counts image tokens alone (released: 512 of text as well), the least speed of a component is by each axis (released:
by the root of the tokens), and the moved grid wraps round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from freescale.backbones.base import RepeatsText
from freescale.backbones.changes import Temperature, reaching, repeating_text
from freescale.cascade import CELL, jump_sizes
from freescale.methods.base import Method
from freescale.positions import PositionRule
from freescale.stagger import staggered
from freescale.vae.codec import by_cells
from freescale.wavelets import haar_low

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from freescale.cascade import Size
    from freescale.flow_levels import ShiftRules
    from freescale.guidance import Denoiser
    from freescale.moment import Moment
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class IMax(Method):
    """Projected flow: the low band of the velocity points to the enlarged picture."""

    name: ClassVar[str] = "imax"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    backbones = frozenset({"flow"})
    filters: ClassVar[bool] = True

    projection: float = 1.0  # weight of the guide; 0: none
    guidance: tuple[float, ...] = (3.5, 7.0)  # scale of each level, where the spec has none
    positions: PositionRule = "imax"
    temperature: Temperature = "entropy"
    repeat_text: bool = True  # at the origin of every grid of the training size
    stagger: bool = True  # every other step on a grid that is moved by a cell
    posterior: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0.0 <= self.projection <= 1.0:
            raise ValueError(f"projection is {self.projection}, allowed: 0 to 1")
        self.check_guidance()
        self.check_choices(
            {
                "positions": get_args(PositionRule),
                "temperature": get_args(Temperature),
                "posterior": ("sample", "mode"),
            }
        )

    @property
    def needs(self) -> Mapping[type, str]:
        """Text that can be at several places, where it is repeated."""
        return {RepeatsText: "repeat_text false"} if self.repeat_text else {}

    @property
    def shift_rule(self) -> ShiftRules:
        """The published shifts."""
        return 3.0, 6.0

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """The field."""
        return self.guidance

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size and the target."""
        return jump_sizes(size, base_size)

    def at_base(self) -> IMax:
        """Return the defaults: level 0 is plain sampling, and a stage is told its guidance."""
        return IMax()

    def at_start(self) -> IMax:
        """Return the defaults: a level starts from noise."""
        return IMax()

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield positions, temperature and repeated text above level 0."""
        level = moment.level
        if level.is_base or level.factor <= 1.0:
            return
        yield from reaching(self.positions, self.temperature, level)
        if self.repeat_text:
            yield repeating_text(level)

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        """Return the velocity, above level 0 with its low band drawn to that of the way to the guide."""
        level = moment.level
        if level.reference is None or level.factor <= 1.0:
            return denoiser(latents, moment.step, moment.schedule)
        velocity = staggered(denoiser, latents, moment, moves=self.stagger)
        if (weight := self.weight_at(moment)) == 0.0:
            return velocity
        to_guide = (latents - level.reference.to(latents)) / moment.sigma
        return velocity + weight * by_cells(level.cell_codec, haar_low, to_guide - velocity)

    def weight_at(self, moment: Moment) -> float:
        """Return the weight of the guide: `projection` at the first step, falling to near 0 at the last."""
        return self.projection * 0.5 * (1.0 + math.cos(math.pi * moment.step / len(moment.schedule)))
