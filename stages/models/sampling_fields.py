"""Types of the fields of a spec that say how a model is sampled."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from freescale import SOLVERS
from freescale.flow_levels import RULES
from freescale.noise_levels import SIGMAS, SPACINGS
from stages.models.method_presets import with_method
from stages.models.presets import NAMES, checked_preset, expanded
from stages.models.samplers import with_sampler

if TYPE_CHECKING:
    SolverName: TypeAlias = str
    Sigmas: TypeAlias = str
    TimestepSpacing: TypeAlias = str
    PresetName: TypeAlias = str
else:  # a new solver of the kernel is a choice here without an edit
    SolverName = Literal[("auto", *SOLVERS)]
    Sigmas = Literal[("auto", "uniform", *SIGMAS)]
    TimestepSpacing = Literal[("auto", *SPACINGS)]
    PresetName = Literal[NAMES]


def _interval(value: Any) -> Any:
    """Return the pair of `0.2:0.8` or [0.2, 0.8]; None stays. Raises `ValueError` for one that does not rise."""
    if value is None:
        return None
    parts = value.split(":") if isinstance(value, str) else value
    try:
        start, end = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError("is not START:END, two shares of the steps, such as 0.2:0.8") from None
    if not 0.0 <= start < end <= 1.0:
        raise ValueError("is not START:END with 0 <= START < END <= 1, such as 0.2:0.8")
    return start, end


def _factor(value: Any) -> Any:
    """Return `auto` or a number above 1 as they are. Raises `ValueError` for another value."""
    try:
        if value in (None, "auto") or (not isinstance(value, bool) and 1.0 < float(value) <= MOST_THINNED):
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(f"is not auto or a factor above 1, to {MOST_THINNED:g}, such as 2")


def _listed(value: Any) -> Any:
    """Return the whole numbers of a text such as `999,499`; other values stay."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    return [int(part) for part in parts] if parts and all(part.isdecimal() for part in parts) else value


def _timesteps(value: Any) -> Any:
    """Return timesteps as they are, those of `999,499` as a list. Raises `ValueError` for a list that does not fall."""
    value = _listed(value)
    whole = isinstance(value, list | tuple) and all(isinstance(each, int) for each in value)
    if whole and any(before <= after for before, after in itertools.pairwise(value)):
        raise ValueError("is not a list of timesteps that fall, such as [999, 749, 499, 249]")
    return value


def _rules(value: Any) -> Any:
    """Return a shift rule, or one a level, as they are; those of `7,9,11` as a list.

    Raises `ValueError` for what is none.
    """
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    given = parts if isinstance(parts, list | tuple) else [parts]
    if value is None:
        return None
    if not given or not all(each in RULES or _is_shift(each) for each in given):
        raise ValueError(f"is not {', '.join(RULES)} or a number above 0, nor a list with one for each level")
    rules = tuple(each if each in RULES else float(each) for each in given)
    return rules if isinstance(value, list | tuple) or len(rules) > 1 else rules[0]


def _is_shift(value: Any) -> bool:
    """Whether a value is a number above 0, or the text of one."""
    try:
        return not isinstance(value, bool) and 0.0 < float(value) < MOST_SHIFT
    except (TypeError, ValueError):
        return False


Preset = Annotated[
    PresetName | tuple[PresetName, ...] | None,
    BeforeValidator(checked_preset, json_schema_input_type=PresetName | tuple[PresetName, ...] | str | None),
]
MOST_THINNED = 16.0  # times a side
MOST_SHIFT = 1e6
DeepCache = Annotated[int | None, Field(ge=2, le=50)]
Branch = Annotated[int, Field(ge=0, le=64)]
DeepCacheLevels = Literal["base", "all"]
Thinned = Annotated[Literal["auto"] | float | None, BeforeValidator(_factor)]
Interval = Annotated[
    tuple[float, float] | None, BeforeValidator(lambda value: None if value is None else _interval(value))
]
Rule = Literal["cap", "sqrt", "stock"] | float
Shift = Annotated[Rule | tuple[Rule, ...] | None, BeforeValidator(_rules)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Timesteps = Annotated[tuple[Timestep, ...] | None, BeforeValidator(_timesteps)]


def sampling_of(values: Any) -> Any:
    """Return the written fields of a spec with what its preset and its sampler's name stand for.

    Raises `ValueError` for fields that say different things.
    """
    if not isinstance(values, dict):
        return values
    filled = with_sampler(expanded(with_sampler(with_method(values))))
    timesteps, steps = _listed(filled.get("timesteps")), filled.get("steps")
    if not timesteps:
        return filled
    if isinstance(timesteps, list | tuple):
        if steps is not None and steps != len(timesteps):
            raise ValueError(f"steps is {steps!r}, and there are {len(timesteps)} timesteps; leave one of them out")
        filled["steps"] = len(timesteps)
    if filled.get("sigmas", "auto") not in ("auto", "uniform"):
        raise ValueError(f"timesteps have noise levels of their own, and sigmas is {filled['sigmas']!r}; leave one out")
    return filled
