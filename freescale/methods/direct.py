"""Direct inference: the model as it is, at the target size. Every other method is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from freescale.freeu import freeu
from freescale.methods.base import Method

if TYPE_CHECKING:
    from collections.abc import Iterator

    from freescale.moment import Moment
    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class Direct(Method):
    """Plain sampling at the target size, with FreeU if asked (FreeScale's tables have it throughout)."""

    name: ClassVar[str] = "direct"
    steady: ClassVar[bool] = True

    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2

    def patches(self, moment: Moment) -> Iterator[Patch]:
        """Yield FreeU, or nothing."""
        if self.freeu is not None:
            yield freeu(*self.freeu)
