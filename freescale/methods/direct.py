"""Direct inference: the model as it is, at the target size. Every other method is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from freescale.methods.base import FeatureLevels, Method


@dataclass(frozen=True)
class Direct(Method):
    """Plain sampling at the target size, with FreeU if asked (FreeScale's tables have it throughout)."""

    name: ClassVar[str] = "direct"
    steady: ClassVar[bool] = True
    keeps_features: ClassVar[FeatureLevels] = "all"

    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2

    @property
    def thins(self) -> bool:
        """Its attention is the model's."""
        return True
