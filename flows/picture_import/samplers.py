"""Samplers by the names of A1111, Forge, ComfyUI and InvokeAI, as our solver and noise levels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping


class NamedSampler(NamedTuple):
    """A solver, its noise levels (None: of evenly spaced timesteps), their spacing, and what differs, for people."""

    solver: str
    sigmas: str | None = None
    timestep_spacing: str | None = None
    remark: str | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a spec; None where a field keeps its default."""
        return {"solver": self.solver, "sigmas": self.sigmas, "timestep_spacing": self.timestep_spacing}


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
SCHEDULES: Mapping[str, tuple[str | None, str | None, str | None]] = {  # sigmas, spacing, remark
    "": (None, None, None),
    "automatic": (None, None, None),
    "normal": (None, None, None),
    "uniform": (None, None, None),
    "simple": (None, "trailing", None),
    "ddimuniform": (None, "leading", None),
    "sgmuniform": (None, "sgm_uniform", None),
    "karras": ("karras", None, None),
    "exponential": ("exponential", None, None),
    "beta": ("beta", None, None),
    "polyexponential": ("exponential", None, "the nearest noise levels are exponential"),
    "klopimal": ("karras", None, "the nearest noise levels are karras"),
    "kloptimal": ("karras", None, "the nearest noise levels are karras"),
    "alignyoursteps": ("karras", None, "the nearest noise levels are karras"),
}
SUFFIXES = ("gpu", "cfgpp")  # of ComfyUI's names, which change nothing, or not the solver


def sampler_named(text: str) -> NamedSampler:
    """Return the solver and the noise levels of a sampler and its schedule, such as `DPM++ 2M Karras`.

    Raises `SpecError` for a name that is not known.
    """
    letters = _letters(text)
    schedule = max((each for each in SCHEDULES if letters.endswith(each)), key=len)
    name = letters.removesuffix(schedule)
    if not schedule and name.endswith("k") and not text.endswith("k-diffusion"):
        name, schedule = name.removesuffix("k"), "karras"  # InvokeAI's dpmpp_2m_k
    bare = name
    for suffix in SUFFIXES:
        bare = bare.removesuffix(suffix)
    bare = bare if bare in SOLVERS or bare in NEAREST else bare.removeprefix("k")  # k_lms, k_euler_a
    solver = SOLVERS.get(bare, NEAREST.get(bare))
    if solver is None:
        raise SpecError(f"sampler: {text!r} is not known; such as 'DPM++ 2M Karras' and 'Euler a' work")
    sigmas, spacing, remark = SCHEDULES[schedule]
    remarks = [f"the nearest solver is {solver}"] if bare in NEAREST else []
    remarks += ["CFG++ is not carried over"] if "cfgpp" in name else []
    return NamedSampler(solver, sigmas, spacing, "; ".join([*remarks, *([remark] if remark else [])]) or None)


def _letters(text: str) -> str:
    """The letters and digits of a name in lower case; `+` is written p, as in dpmpp for DPM++."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("+", "p"))
