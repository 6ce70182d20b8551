"""Which schedulers of diffusers a model may name, and how their configuration is read.

A scheduler says two things: the noise levels that the model was trained at, and how to take the steps between them. The
noise levels are honoured, and what they depend on is checked by value. The steps are taken by one of our solvers: the
class names the one that a render has by default. Where there is none of its kind, it is the nearest, and a remark says
so before the render.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from freescale.noise_levels import LCM_STEPS, SIGMAS
from freescale.schedule import HONOURED, make_schedule
from stages.errors import SpecError
from stages.models.fields import ANY, BETA, COUNT, FLAG, NONE, NOTES, OFF, WHOLE, Table, Values, check_fields, one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from freescale import Solver

    Choice = tuple[Solver, bool]

_TABLE: Table = {
    **NOTES,
    **{name: one_of(*values) for name, values in HONOURED.items()},
    "num_train_timesteps": WHOLE,
    "beta_start": BETA,
    "beta_end": BETA,
    "steps_offset": COUNT,
    "set_alpha_to_one": FLAG,
    "clip_sample": OFF,
    "thresholding": OFF,
    "use_flow_sigmas": OFF,
    "use_lu_lambdas": OFF,
    "use_dynamic_shifting": OFF,
    "sigma_min": NONE,
    "sigma_max": NONE,
    "shift_terminal": NONE,
    "variance_type": one_of(None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "lambda_min_clipped": one_of(None, float("-inf")),
    # What the fields above turn on, or how the class named takes its steps, which is a solver's part here.
    **dict.fromkeys(
        (
            *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
            *("skip_prk_steps", "solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final"),
            *("predict_x0", "disable_corrector", "solver_p", "noise_sampler_seed", "timestep_scaling"),
            *("predictor_order", "corrector_order", "tau_func"),
        ),
        ANY,
    ),
}
_DPM: Table = {
    "solver_order": one_of(1, 2, 3),
    "solver_type": one_of("midpoint", "heun"),
    "algorithm_type": one_of("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
}
_LCM: Table = {"original_inference_steps": one_of(LCM_STEPS)}


def _dpm(config: Mapping[str, Any]) -> Choice:
    """Return our solver for DPM-Solver with a memory, and whether its steps are those."""
    algorithm = str(config.get("algorithm_type", "dpmsolver++"))
    adds_noise, order = algorithm.startswith("sde"), config.get("solver_order", 2)
    plus, midpoint = algorithm.endswith("++"), config.get("solver_type", "midpoint") == "midpoint"
    if order == 1:
        return ("euler_ancestral", plus) if adds_noise else ("euler", True)
    if order == 3 and adds_noise:
        return "dpmpp_3m_sde", False  # k-diffusion's, whose third order has another sign
    return ("dpmpp_2m_sde" if adds_noise else "dpmpp_2m"), plus and midpoint and order == 2


def _unipc(config: Mapping[str, Any]) -> Choice:
    """Return our solver for UniPC, and whether its steps are those."""
    usual = {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
    return "unipc", all(config.get(name, value) == value for name, value in usual.items())


@dataclass(frozen=True)
class Kind:
    """A class of schedulers: our solver for it, and its own defaults where they are not those of `make_schedule`.

    `clip_sample` that is left unsaid is off, as diffusers' pipelines have it, whatever the default of a class.
    """

    solver: Solver = "euler"
    absent: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Values] = field(default_factory=dict)
    exact: bool = True  # whether our solver takes the steps of the class, not just similar ones
    choose: Callable[[Mapping[str, Any]], Choice] | None = None  # the solver and `exact`, by a configuration
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what holds whatever a file says
    levels: str = "training"  # the range of Karras and other levels of their own


_LINSPACE = {"timestep_spacing": "linspace"}
_KARRAS = {"beta_start": 0.00085, "beta_end": 0.012, **_LINSPACE}
_DISTILLED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TIMESTEPS = "timesteps"
KINDS: Mapping[str, Kind] = {
    "DDIMScheduler": Kind("ddim"),
    "DDIMParallelScheduler": Kind("ddim"),
    "PNDMScheduler": Kind("ddim", {"set_alpha_to_one": False}, exact=False),
    "DDPMScheduler": Kind(exact=False),
    "DDPMParallelScheduler": Kind(exact=False),
    "EulerDiscreteScheduler": Kind(absent=_LINSPACE, levels=_TIMESTEPS),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral", _LINSPACE),
    "HeunDiscreteScheduler": Kind("heun", _KARRAS, levels=_TIMESTEPS),
    "KDPM2DiscreteScheduler": Kind("dpm_2", _KARRAS, levels=_TIMESTEPS),
    "KDPM2AncestralDiscreteScheduler": Kind("dpm_2_ancestral", _KARRAS, levels=_TIMESTEPS),
    "LMSDiscreteScheduler": Kind("lms", _LINSPACE, levels=_TIMESTEPS),
    "DPMSolverMultistepScheduler": Kind("dpmpp_2m", _LINSPACE, _DPM, choose=_dpm),
    "DPMSolverSinglestepScheduler": Kind(absent=_LINSPACE, exact=False),
    "DPMSolverSDEScheduler": Kind("dpmpp_sde", _KARRAS, levels=_TIMESTEPS),
    "DEISMultistepScheduler": Kind(absent=_LINSPACE, exact=False),
    "UniPCMultistepScheduler": Kind("unipc", _LINSPACE, choose=_unipc),
    "SASolverScheduler": Kind("dpmpp_2m_sde", _LINSPACE, exact=False),
    "LCMScheduler": Kind("lcm", _DISTILLED, _LCM, fixed={"timestep_spacing": "lcm"}),
    "TCDScheduler": Kind("tcd", _DISTILLED, _LCM, fixed={"timestep_spacing": "lcm"}),
}


def table_of(name: str) -> Mapping[str, Values]:
    """Return the fields of a class of `KINDS`, with the values of each that are honoured."""
    return {**_TABLE, **KINDS[name].own}


class Read(NamedTuple):
    """What a scheduler's configuration says."""

    solver: Solver
    decided: dict[str, Any]  # what the file leaves unsaid or says otherwise, and what holds
    remark: str | None  # where the solver is not that of the class


def read_scheduler(path: Path, config: Mapping[str, Any]) -> Read:
    """Return our solver for a scheduler's configuration, and what its class decides beside the file.

    Raises `SpecError` for a class or a value that is not honoured.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise SpecError(f"model: {path} is of the class {name}; the noise levels of {', '.join(KINDS)} are known")
    kind = KINDS[name]
    decided = {key: value for key, value in kind.absent.items() if key not in config}
    check_fields(path, table_of(name), {**config, **decided}, name)
    if kind.levels != "training" and any(config.get(f"use_{levels}_sigmas") for levels in SIGMAS):
        decided["sigma_range"] = kind.levels
    solver, exact = kind.choose(config) if kind.choose else (kind.solver, kind.exact)
    remark = None if exact else f"the model's scheduler is {name}; {solver} is the nearest solver here, and is taken"
    return Read(solver, {**decided, **kind.fixed}, remark)


def check_schedule(path: Path, config: Mapping[str, Any]) -> None:
    """Lay out a schedule of one step. Raises `SpecError` for values that go each alone and not together."""
    try:
        make_schedule(config, 1)
    except ValueError as error:
        raise SpecError(f"model: {path}: {error}") from None
