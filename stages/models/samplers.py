"""Names of samplers in other programs: "DPM++ 2M Karras", `dpmpp_2m` with `sgm_uniform`, `euler_k`.

A name is a solver, and often the noise levels that it goes through.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from freescale import SOLVERS
from stages.errors import SpecError, not_one_of

if TYPE_CHECKING:
    from collections.abc import Mapping


class Sampler(NamedTuple):
    """A solver with its noise levels; `auto` is the model's own."""

    solver: str
    sigmas: str = "auto"
    timestep_spacing: str = "auto"


LEVELS: Mapping[str, tuple[str, str]] = {
    "karras": ("karras", "auto"),
    "exponential": ("exponential", "auto"),
    "beta": ("beta", "auto"),
    "normal": ("uniform", "linspace"),
    "uniform": ("uniform", "auto"),
    "simple": ("uniform", "trailing"),
    "sgm_uniform": ("uniform", "sgm_uniform"),
    "ddim_uniform": ("uniform", "leading"),
    "ddim": ("uniform", "leading"),
    "trailing": ("uniform", "trailing"),
    "leading": ("uniform", "leading"),
    "linspace": ("uniform", "linspace"),
}
"""Schedulers of ComfyUI and A1111 (there `Schedule type`): (sigmas, timestep_spacing)."""

WORDS: Mapping[str, str] = {
    "euler": "euler k_euler euler_cfg_pp",
    "euler_ancestral": "euler_a k_euler_a k_euler_ancestral ddpm",
    "heun": "k_heun",
    "dpm_2": "dpm2 kdpm_2 k_dpm_2",
    "dpm_2_ancestral": "dpm2_a kdpm_2_a kdpm_2_ancestral k_dpm_2_a k_dpm_2_ancestral",
    "lms": "k_lms",
    "dpmpp_2m": "dpm_2m dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde_gpu",
    "dpmpp_3m_sde": "dpmpp_3m_sde_gpu",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_sde": "dpmpp_sde_gpu",
    "unipc": "uni_pc uni_pc_bh2",
}
"""Our solver: names of others for it, in the spelling of ComfyUI; the noise of DDPM is that of Euler ancestral."""

NEAREST: Mapping[str, str] = {
    "ddim": "pndm plms",
    "dpmpp_2m": "dpmpp_3m dpmpp_2s deis dpm_fast res_multistep dpm_adaptive",
    "dpmpp_2m_sde": "dpmpp_2m_sde_heun sa_solver seeds_2",
    "lms": "ipndm ipndm_v",
    "heun": "heunpp2",
    "tcd": "restart",
}
"""Our solver: names of samplers that are not here, for which it is the nearest."""

AUTOMATIC: Mapping[str, str] = {
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_ancestral", "dpm_2", "dpm_2_ancestral"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), "exponential"),
}
"""What A1111 takes for the schedule type `Automatic`, which has evenly spaced timesteps with all others."""


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("++", "pp"))


_NAMES = {
    **{_letters(word): ours for ours, words in WORDS.items() for word in words.split()},
    **{_letters(name): name for name in SOLVERS},
}
_NEAREST = {_letters(word): ours for ours, words in NEAREST.items() for word in words.split()}


def sampler_named(text: str) -> Sampler:
    """Return (solver, sigmas, timestep_spacing) for a sampler's name in this or another program.

    `auto` where the name says nothing: the model's own; A1111 and ComfyUI then have what is `linspace` here. Raises
    `SpecError` for a name that is not known, with the nearest.
    """
    name, levels = _parted(text)
    solver = _NAMES.get(name)
    if solver is None:
        near = _NEAREST.get(name)
        says = not_one_of(text, SOLVERS, _NAMES) if near is None else f"{text!r} is not here; the nearest is {near!r}"
        raise SpecError(f"solver: {says}")
    if levels == "automatic":
        return Sampler(solver, AUTOMATIC.get(solver, "uniform"), "auto")
    return Sampler(solver, *LEVELS.get(levels, ("auto", "auto")))


def nearest_sampler(text: str) -> Sampler | None:
    """Return the nearest of our samplers to one that is not here, by its name in another program; None: unknown."""
    name, levels = _parted(text)
    solver = _NAMES.get(name) or _NEAREST.get(name)
    return None if solver is None else Sampler(solver, *LEVELS.get(levels, ("auto", "auto")))


def _parted(text: str) -> tuple[str, str]:
    """Return the letters of the sampler's name, and the word for its levels that the text ends in, if any.

    InvokeAI writes `_k` for Karras.
    """
    whole = _letters(text)
    if whole in _NAMES or whole in _NEAREST:
        return whole, ""
    if text.strip().lower().endswith("_k"):
        return whole[:-1], "karras"
    for levels in sorted((*LEVELS, "automatic"), key=len, reverse=True):
        if whole.endswith(_letters(levels)) and len(whole) > len(_letters(levels)):
            return whole.removesuffix(_letters(levels)), levels
    return whole, ""


def with_sampler(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec whose `solver` may be a name of another program: `solver`, `sigmas`, and spacing.

    A name that is not known stays, to be refused by its field. Raises `ValueError` where the name and another field
    say different things.
    """
    given = values.get("solver")
    if not isinstance(given, str) or given in SOLVERS or given == "auto":
        return dict(values)
    try:
        found = sampler_named(given)
    except SpecError:
        return dict(values)
    filled = {**values, "solver": found.solver}
    for name, value in (("sigmas", found.sigmas), ("timestep_spacing", found.timestep_spacing)):
        said = values.get(name, "auto")
        if "auto" in (said, value):
            filled[name] = value if said == "auto" else said
        elif said != value:
            raise ValueError(f"solver {given!r} has {name} {value!r}, and {name} is {said!r}; leave one of them out")
    return filled
