"""Presets: how models that need few steps were made to be sampled. A spec that says otherwise wins.

Nothing in a file's weights tells these models apart, so a preset is asked for, with `preset: lightning-4`; the name of
a file leads to a remark and to nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    preset = PRESETS.get(str(values.get("preset")))
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


def method_values(preset: str | None) -> MethodValues:
    """Return the values of methods that go with a preset of up to four steps; none for others."""
    return FEW_STEPS if preset is not None and PRESETS[preset].steps <= 4 else {}


def named_in(name: str) -> str | None:
    """Return the preset that a file's or a folder's name speaks of, or None."""
    for pattern, preset in _NAMES:
        if found := re.search(pattern, name.lower()):
            preset = preset.format(*found.groups())
            return preset if preset in PRESETS else None
    return None
