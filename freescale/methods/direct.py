"""Direct inference: the model as it is, at the target size. Every other method is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from freescale.backbones.changes import Temperature, reaching
from freescale.methods.base import FeatureLevels, Method, later
from freescale.positions import PositionRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from freescale.backbones import BackboneKind
    from freescale.flow_levels import ShiftRules
    from freescale.moment import Moment
    from freescale.unet_patches import Patch

_ONLY: Mapping[BackboneKind, Mapping[str, Any]] = {
    "unet": {"positions": "none", "temperature": "off"},
    "flow": {"freeu": None},
}


@dataclass(frozen=True)
class Direct(Method):
    """Plain sampling at the target size, with FreeU if asked (FreeScale's tables have it throughout)."""

    name: ClassVar[str] = "direct"
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "all"

    backbones = frozenset({"unet", "flow"})
    only = _ONLY

    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2
    positions: PositionRule = later("none")  # of a flow model's tokens
    temperature: Temperature = later("off")

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        self.check_choices({"positions": get_args(PositionRule), "temperature": get_args(Temperature)})

    @property
    def shift_rule(self) -> ShiftRules:
        """More noise for more tokens: nothing below has made the picture's structure."""
        return "sqrt"

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield the rule of positions and the temperature."""
        yield from reaching(self.positions, self.temperature, moment.level)

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True
