"""The methods, one file each. To add one: its file, its line here, its table in `docs/reference/paper_map.md`."""

from __future__ import annotations

from freescale.methods.ap_ldm import APLDM
from freescale.methods.base import Method
from freescale.methods.cinescale import CineScale, CineScale2026
from freescale.methods.demofusion.method import DemoFusion
from freescale.methods.diffusehigh import DiffuseHigh
from freescale.methods.direct import Direct
from freescale.methods.enlarge import Enlarge
from freescale.methods.fam import FAM
from freescale.methods.fouriscale.method import FouriScale
from freescale.methods.frecas import FreCaS
from freescale.methods.freescale import FreeScale
from freescale.methods.hidiffusion.method import HiDiffusion
from freescale.methods.hiflow import HiFlow
from freescale.methods.hiwave import HiWave
from freescale.methods.imax import IMax
from freescale.methods.mrflow import MrFlow
from freescale.methods.pixelrush import PixelRush
from freescale.methods.rectifiedhr import RectifiedHR
from freescale.methods.scalecrafter.method import ScaleCrafter
from freescale.methods.scalediff import ScaleDiff
from freescale.methods.swift import Draft, Swift

METHODS: dict[str, type[Method]] = {
    "direct": Direct,
    "freescale": FreeScale,
    "swift": Swift,
    "draft": Draft,
    "scalecrafter": ScaleCrafter,
    "demofusion": DemoFusion,
    "hidiffusion": HiDiffusion,
    "fouriscale": FouriScale,
    "rectifiedhr": RectifiedHR,
    "frecas": FreCaS,
    "scalediff": ScaleDiff,
    "diffusehigh": DiffuseHigh,
    "fam": FAM,
    "ap_ldm": APLDM,
    "mrflow": MrFlow,
    "pixelrush": PixelRush,
    "hiwave": HiWave,
    "enlarge": Enlarge,
    "cinescale": CineScale,
    "cinescale_2026": CineScale2026,
    "hiflow": HiFlow,
    "imax": IMax,
}

__all__ = [
    "APLDM",
    "FAM",
    "METHODS",
    "CineScale",
    "CineScale2026",
    "DemoFusion",
    "DiffuseHigh",
    "Direct",
    "Draft",
    "Enlarge",
    "FouriScale",
    "FreCaS",
    "FreeScale",
    "HiDiffusion",
    "HiFlow",
    "HiWave",
    "IMax",
    "Method",
    "MrFlow",
    "PixelRush",
    "RectifiedHR",
    "ScaleCrafter",
    "ScaleDiff",
    "Swift",
]
