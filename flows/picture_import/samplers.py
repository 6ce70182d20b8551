"""Samplers by the names of A1111, Forge, ComfyUI and InvokeAI, as our solver and noise levels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Sampler(NamedTuple):
    """A solver with its noise levels; `auto` is the model's own."""

    solver: str
    sigmas: str = "auto"
    timestep_spacing: str = "auto"


SOLVERS: Mapping[str, str] = {  # letters and digits of a name, `+` as p: our solver
    "euler": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "heun": "heun",
    "dpm2": "dpm_2",
    "kdpm2": "dpm_2",
    "dpm2a": "dpm_2_ancestral",
    "dpm2ancestral": "dpm_2_ancestral",
    "kdpm2a": "dpm_2_ancestral",
    "lms": "lms",
    "ddim": "ddim",
    "lcm": "lcm",
    "tcd": "tcd",
    "unipc": "unipc",
    "unipcbh2": "unipc",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2sa": "dpmpp_2s_ancestral",
    "dpmpp2sancestral": "dpmpp_2s_ancestral",
    "dpmpp2s": "dpmpp_2s_ancestral",
    "dpmppsde": "dpmpp_sde",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmpp3msde": "dpmpp_3m_sde",
}
NEAREST: Mapping[str, str] = {  # a name without a solver of ours: the nearest
    "dpmpp2msdeheun": "dpmpp_2m_sde",
    "ddpm": "euler_ancestral",
    "plms": "ddim",
    "pndm": "ddim",
    "ipndm": "lms",
    "deis": "dpmpp_2m",
    "heunpp2": "heun",
    "restart": "euler",
    "dpmfast": "dpmpp_2s_ancestral",
    "dpmadaptive": "dpmpp_2m",
    "resmultistep": "dpmpp_2m",
}
SCHEDULES: Mapping[str, tuple[str, str]] = {  # sigmas and spacing
    "": ("auto", "auto"),
    "automatic": ("auto", "auto"),
    "normal": ("uniform", "linspace"),
    "uniform": ("uniform", "auto"),
    "simple": ("uniform", "trailing"),
    "ddimuniform": ("uniform", "leading"),
    "sgmuniform": ("uniform", "sgm_uniform"),
    "karras": ("karras", "auto"),
    "exponential": ("exponential", "auto"),
    "beta": ("beta", "auto"),
}
SUFFIXES = ("gpu", "cfgpp")  # of ComfyUI's names, which change nothing, or not the solver


def sampler_named(text: str) -> Sampler:
    """Return the solver and the noise levels of a sampler and its schedule, such as `DPM++ 2M Karras`.

    Raises `SpecError` for a name that is not known.
    """
    name, schedule = _parted(text)
    if name not in SOLVERS:
        raise SpecError(f"solver: {text!r} is not known; such as 'DPM++ 2M Karras' and 'Euler a' work")
    return Sampler(SOLVERS[name], *SCHEDULES[schedule])


def nearest_sampler(text: str) -> Sampler | None:
    """Return the nearest of our samplers to one that is not here; None: an unknown name."""
    name, schedule = _parted(text)
    solver = SOLVERS.get(name) or NEAREST.get(name)
    return None if solver is None else Sampler(solver, *SCHEDULES[schedule])


def _parted(text: str) -> tuple[str, str]:
    """The letters of the sampler's name, and those of its schedule."""
    letters = _letters(text)
    if text.strip().lower().endswith("_k"):
        return letters.removesuffix("k"), "karras"  # InvokeAI's dpmpp_2m_k
    schedule = max((each for each in SCHEDULES if letters.endswith(each)), key=len)
    name = letters.removesuffix(schedule)
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return (name if name in SOLVERS or name in NEAREST else name.removeprefix("k")), schedule  # k_lms, k_euler_a


def _letters(text: str) -> str:
    """The letters and digits of a name in lower case; `+` is written p, as in dpmpp for DPM++."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("+", "p"))
