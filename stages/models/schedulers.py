"""Which schedulers of diffusers a model may name, and how their configuration is read.

A scheduler says two things: the noise levels that the model was trained at, and how to take the steps between them. The
noise levels are honoured, and what they depend on is checked by value. The steps are taken by one of our solvers: the
class names the one that a render has by default, `euler` where there is none of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from freescale.schedule import HONOURED, make_steps
from stages.errors import SpecError
from stages.models.fields import ANY, BETA, COUNT, FLAG, NONE, NOTES, OFF, WHOLE, Table, Values, check_fields, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from freescale import Solver

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
            *("predict_x0", "disable_corrector", "solver_p"),
        ),
        ANY,
    ),
}
_DPMPP_2M: Table = {
    "solver_order": one_of(2),
    "solver_type": one_of("midpoint"),
    "algorithm_type": one_of("dpmsolver++"),
}


@dataclass(frozen=True)
class Kind:
    """A class of schedulers: our solver for it, and its own defaults where they are not those of `make_schedule`.

    `clip_sample` that is left unsaid is off, as diffusers' pipelines have it, whatever the default of a class.
    """

    solver: Solver = "euler"
    absent: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Values] = field(default_factory=dict)


_LINSPACE = {"timestep_spacing": "linspace"}
_KARRAS = {"beta_start": 0.00085, "beta_end": 0.012, **_LINSPACE}
KINDS: Mapping[str, Kind] = {
    "DDIMScheduler": Kind("ddim"),
    "DDIMParallelScheduler": Kind("ddim"),
    "PNDMScheduler": Kind("ddim", {"set_alpha_to_one": False}),
    "DDPMScheduler": Kind(),
    "DDPMParallelScheduler": Kind(),
    "EulerDiscreteScheduler": Kind(absent=_LINSPACE),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral", _LINSPACE),
    "HeunDiscreteScheduler": Kind(absent=_KARRAS),
    "KDPM2DiscreteScheduler": Kind(absent=_KARRAS),
    "KDPM2AncestralDiscreteScheduler": Kind("euler_ancestral", _KARRAS),
    "LMSDiscreteScheduler": Kind(absent=_LINSPACE),
    "DPMSolverMultistepScheduler": Kind("dpmpp_2m", _LINSPACE, _DPMPP_2M),
    "DPMSolverSinglestepScheduler": Kind(absent=_LINSPACE),
    "DEISMultistepScheduler": Kind(absent=_LINSPACE),
    "UniPCMultistepScheduler": Kind(absent=_LINSPACE),
}


def table_of(name: str) -> Mapping[str, Values]:
    """Return the fields of a class of `KINDS`, with the values of each that are honoured."""
    return {**_TABLE, **KINDS[name].own}


def read_scheduler(path: Path, config: Mapping[str, Any]) -> tuple[Solver, dict[str, Any]]:
    """Return our solver for a scheduler's configuration, and the defaults of its class that the file leaves unsaid.

    Raises `SpecError` for a class or a value that is not honoured.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise SpecError(f"model: {path} is of the class {name}; the noise levels of {', '.join(KINDS)} are known")
    unsaid = {key: value for key, value in KINDS[name].absent.items() if key not in config}
    check_fields(path, table_of(name), {**config, **unsaid}, name)
    return KINDS[name].solver, unsaid


def check_schedule(path: Path, config: Mapping[str, Any]) -> None:
    """Lay out a schedule of one step. Raises `SpecError` for values that go each alone and not together."""
    try:
        make_steps(config, 1)
    except ValueError as error:
        raise SpecError(f"model: {path}: {error}") from None
