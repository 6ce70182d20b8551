"""Plain enlargement: level 0 is sampled at the training size, and its picture is enlarged in pixels. No diffusion.

It is the row that every table needs: objects are those of level 0, and there is no detail that level 0 has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from freescale.cascade import CELL, jump_sizes
from freescale.enlarge import PictureFilter
from freescale.methods.base import FeatureLevels, Method, of_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freescale.backbones import BackboneKind
    from freescale.cascade import Size


_ONLY: Mapping[BackboneKind, Mapping[str, Any]] = {"flow": {"freeu": None}}


@dataclass(frozen=True)
class Enlarge(Method):
    """The training size, and its picture enlarged to the target."""

    name: ClassVar[str] = "enlarge"
    video: ClassVar[bool] = False
    steady: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True
    backbones = frozenset({"unet", "flow"})
    only = _ONLY
    keeps_features: ClassVar[FeatureLevels] = "base"

    filter: PictureFilter = "bicubic"
    upscaler: str | None = of_reference()  # a file of a network that enlarges in place of the filter
    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        self.check_choices({"filter": get_args(PictureFilter)})

    @property
    def picture_filter(self) -> PictureFilter:
        """The filter."""
        return self.filter

    def sizes(self, size: Size, base_size: Size, cell: int = CELL) -> tuple[Size, ...]:
        """Return the training size and the target."""
        return jump_sizes(size, base_size)

    def at_base(self) -> Enlarge:
        """Return the method with FreeU's field only."""
        return Enlarge(freeu=self.freeu)
