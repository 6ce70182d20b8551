"""The methods, one file each. To add one: its file, its line here, its table in `docs/paper_map.md`."""

from __future__ import annotations

from freescale.methods.base import Method
from freescale.methods.direct import Direct
from freescale.methods.fouriscale import FouriScale
from freescale.methods.freescale import FreeScale
from freescale.methods.scalecrafter import ScaleCrafter

METHODS: dict[str, type[Method]] = {
    "direct": Direct,
    "freescale": FreeScale,
    "scalecrafter": ScaleCrafter,
    "fouriscale": FouriScale,
}

__all__ = ["METHODS", "Direct", "FouriScale", "FreeScale", "Method", "ScaleCrafter"]
