"""Presets: how models that need few steps were made to be sampled. A spec that says otherwise wins.

Nothing in a file's weights tells these models apart, so a preset is asked for, with `preset: lightning-4`; the name of
a file leads to a remark and to nothing else.

A preset may also name a method with its values, `preset: swift` (`stages/models/method_presets.py`), and both may be
given: `preset: lightning-4,swift`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import not_one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.card import MethodValues

FEW_STEPS: MethodValues = {
    "freescale": {"restart": 0.5, "dilation": (0.0, 1.0)},
    "hidiffusion": {"rad": (0.0, 0.0), "pool": (0.0, 0.5)},
}  # of four steps: two a level, dilated throughout; HiDiffusion as released for SDXL-Turbo


@dataclass(frozen=True)
class Preset:
    """The sampling that a distilled model was made for."""

    steps: int
    solver: str
    timestep_spacing: str = "trailing"
    timesteps: tuple[int, ...] = ()  # where no spacing has them
    eta: float | None = None
    guidance_scale: float = 0.0  # none
    prediction: str | None = None
    most_steps: int | None = None  # where it works with more steps than `steps`, up to these


PRESETS: Mapping[str, Preset] = {
    #                       steps  solver
    "turbo":         Preset(4,  "euler_ancestral", most_steps=4),
    "lightning-1":   Preset(1,  "euler", prediction="sample"),
    "lightning-2":   Preset(2,  "euler"),
    "lightning-4":   Preset(4,  "euler"),
    "lightning-8":   Preset(8,  "euler"),
    "hyper-1":       Preset(1,  "tcd", "lcm", eta=1.0, most_steps=8),
    "hyper-2":       Preset(2,  "ddim", eta=0.0),
    "hyper-4":       Preset(4,  "ddim", eta=0.0),
    "hyper-8":       Preset(8,  "ddim", eta=0.0),
    "hyper-cfg-8":   Preset(8,  "ddim", eta=0.0, guidance_scale=5.0),
    "hyper-cfg-12":  Preset(12, "ddim", eta=0.0, guidance_scale=5.0),
    "lcm":           Preset(4,  "lcm", "lcm", most_steps=8),
    "dmd2":          Preset(4,  "lcm"),
    "dmd2-1":        Preset(1,  "lcm", timesteps=(399,)),
}  # fmt: skip
"""By the model cards of SDXL-Turbo, SDXL-Lightning, Hyper-SD, LCM-LoRA and DMD2."""

METHOD_PRESETS: Mapping[str, str] = {"reference": "freescale", "swift": "swift", "draft": "draft"}
"""The method that a preset of a method decides."""

NAMES = (*PRESETS, *METHOD_PRESETS)
LISTS_PRESETS = "freescale presets"


def names_in(preset: Any) -> tuple[str, ...]:
    """Return the names in a `preset` of a spec: one, several with commas, or a list; nothing for anything else."""
    parts = preset.split(",") if isinstance(preset, str) else preset if isinstance(preset, list | tuple) else ()
    return tuple(part.strip() for part in parts if isinstance(part, str))


def few_steps_in(preset: Any) -> str | None:
    """Return the name in a `preset` that says how a model for few steps is sampled, or None."""
    return next((name for name in names_in(preset) if name in PRESETS), None)


def method_preset_in(preset: Any) -> str | None:
    """Return the name in a `preset` that decides the method, or None."""
    return next((name for name in names_in(preset) if name in METHOD_PRESETS), None)


def method_of(preset: Any) -> str:
    """Return the name of the method where a spec gives none: that of its `preset`, else FreeScale."""
    return METHOD_PRESETS.get(method_preset_in(preset) or "", "freescale")


def checked_preset(value: Any) -> str | tuple[str, ...] | None:
    """Return a preset as a record holds it: a name, or the one for few steps and the one of a method.

    `reference` is what a spec without a preset is, and is left out. Raises `ValueError` for a name that is none, and
    for two of one kind.
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    for part in parts or [value]:
        if not isinstance(part, str) or part.strip() not in NAMES:
            raise ValueError(
                not_one_of(part.strip() if isinstance(part, str) else part, NAMES, listed_by=LISTS_PRESETS)
            )
    found = []
    for kind, says in ((PRESETS, "for few steps"), (METHOD_PRESETS, "methods")):
        of_kind = [name for name in names_in(value) if name in kind]
        if len(of_kind) > 1:
            raise ValueError(
                f"has {of_kind[0]!r} and {of_kind[1]!r}, which are both {says}; one for few steps and one of a method "
                "go together, such as lightning-4,swift"
            )
        found += [name for name in of_kind if name != "reference"]
    return tuple(found) if len(found) > 1 else found[0] if found else None


_NAMES = (  # what the authors call their files
    (r"lightning[-_ ]?([1248])[-_ ]?step", "lightning-{}"),
    (r"hyper.*?(8|12)[-_ ]?steps?[-_ ]?cfg", "hyper-cfg-{}"),
    (r"hyper.*?([1248])[-_ ]?step", "hyper-{}"),
    (r"dmd2.*?1[-_ ]?step", "dmd2-1"),
    (r"dmd2", "dmd2"),
    (r"(?:^|[-_ /])lcm(?:[-_ .]|$)", "lcm"),
    (r"(?:sdxl|sd|xl)[-_ ]?turbo", "turbo"),
)


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec with its preset's values where it says nothing (None or `auto`) itself.

    An unknown preset, which the field refuses, changes nothing.
    """
    preset = PRESETS.get(few_steps_in(values.get("preset")) or "")
    if preset is None:
        return dict(values)
    asked = values.get("steps")
    own = {
        "steps": preset.steps,
        "solver": preset.solver,
        "eta": preset.eta if values.get("solver") in (None, "auto") else None,
        "timestep_spacing": preset.timestep_spacing,
        "timesteps": preset.timesteps if asked in (None, preset.steps) and preset.timesteps else None,
        "guidance_scale": preset.guidance_scale,
    }
    if values.get("timesteps"):
        own.pop("steps")
    said = {name: value for name, value in values.items() if name not in own or value not in (None, "auto")}
    filled = {**{name: value for name, value in own.items() if value is not None}, **said}
    if preset.prediction is not None:
        filled["model"] = _with_prediction(values.get("model"), preset.prediction)
    return filled


def _with_prediction(model: Any, prediction: str) -> Any:
    """Return a model's fields, as a mapping, a name or a checked model, with what it predicts unless they say it."""
    if model is None or isinstance(model, str):
        return {**({} if model is None else {"name": model}), "prediction": prediction}
    if isinstance(model, dict):
        return model if model.get("prediction", "auto") != "auto" else {**model, "prediction": prediction}
    return model if model.prediction != "auto" else model.model_copy(update={"prediction": prediction})


def method_values(preset: Any) -> MethodValues:
    """Return the values of methods that go with a preset of up to four steps; none for others."""
    name = few_steps_in(preset)
    return FEW_STEPS if name is not None and PRESETS[name].steps <= 4 else {}


def named_in(name: str) -> str | None:
    """Return the preset that a file's or a folder's name speaks of, or None."""
    for pattern, preset in _NAMES:
        if found := re.search(pattern, name.lower()):
            preset = preset.format(*found.groups())
            return preset if preset in PRESETS else None
    return None
