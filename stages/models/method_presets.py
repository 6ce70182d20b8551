"""Presets of methods: `reference`, `swift` and `draft`, with a method's values for every family of models.

Values were measured on `shapes` alone, whose card has its own. Those of SDXL are proposals within the ranges that the
papers of their parts give. The other families have them by a rule, which is not measured either: noise of one
deviation destroys as much of a picture whose training grid is 1/m of SDXL's on each axis as noise of m times that
deviation does there, so a level starts at sigma / m. Transformers that were trained by flow matching have latents
(1 - t) x0 + t n: their t of the same ratio of noise to picture is sigma / (1 + sigma), whatever their training size is.
A model's card comes before all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.presets import METHOD_PRESETS, method_preset_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.info import ModelInfo

Values = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Models that are trained at one size, and where a preset's values for them come from."""

    says: str
    cells: int  # of a side of the training grid
    is_xl: bool  # told sizes, as SDXL is
    source: str
    is_flow: bool = False  # transformers of any training size; values are given for this one


@dataclass(frozen=True)
class Measured:
    """What was found for a preset on `shapes`, in per cent and as shares of true detail; n pictures a scale."""

    n: int
    right: Mapping[str, tuple[int, int]]  # by scale: share of right pictures, and its standard error
    detail: Mapping[str, float]  # by scale: energy of periods of 4 to 8 pixels over that of the truth after the VAE


@dataclass(frozen=True)
class MethodPreset:
    """A preset of a method: its values and its cost by family, and what was measured."""

    says: str
    values: Mapping[str, Values]
    calls: Mapping[str, tuple[float, float, float]]  # by family and scale, with 50 steps: what the plan says
    tflop: tuple[int, int, int]  # of SDXL, the VAE included
    unet_gib: tuple[float, float, float]  # of SDXL's UNet in bfloat16 with its weights, without any saving
    measured: Measured
    few_steps: Values = field(default_factory=dict)  # with a model for few steps, of any family


SCALES = (2, 4, 8)  # times the training size: what `calls` are given for
FAMILIES: Mapping[str, Family] = {
    "sdxl":    Family("SDXL",                           128, True,  "proposed"),
    "sd2-768": Family("Stable Diffusion 2.x at 768",     96, False, "by rule"),
    "sd":      Family("Stable Diffusion 1.x, 2.x at 512", 64, False, "by rule"),
    "flow":    Family("transformers",                   128, False, "by rule", is_flow=True),
}  # fmt: skip

TABLE: Mapping[str, MethodPreset] = {
    "reference": MethodPreset(
        "FreeScale as it stands; all is measured against it",
        values={"sdxl": {}, "sd2-768": {}, "sd": {}, "flow": {}},
        calls={"sdxl": (281, 2006, 20992), "sd2-768": (407, 3907, 49255), "sd": (307, 2430, 27480),
               "flow": (303, 2453, 28228)},
        tflop=(3889, 27723, 289879),
        unet_gib=(6.1, 9.8, 24.7),
        measured=Measured(64, {"2x": (88, 4), "4x": (73, 6)}, {"2x": 0.42, "4x": 0.33}),
    ),
    "swift": MethodPreset(
        "few steps at the last size: a fraction of the cost",
        values={
            #           level 0       above it
            "sdxl":    {"leave": 0.8, "start_timestep": 600.0, "steps": 8, "guidance": 1.0},
            "sd2-768": {"leave": 0.8, "start_timestep": 517.0, "steps": 8, "guidance": 1.0},
            "sd":      {"leave": 0.8, "start_timestep": 394.0, "steps": 8, "guidance": 1.0},
            "flow":    {"leave": 0.8, "start_timestep": 696.0, "steps": 8, "guidance": 1.0, "patches_only": True},
        },
        calls={"sdxl": (72, 167, 675), "sd2-768": (72, 168, 679), "sd": (72, 168, 677), "flow": (70, 157, 623)},
        tflop=(1056, 2779, 15066),
        unet_gib=(6.1, 9.8, 24.6),
        measured=Measured(64, {"2x": (88, 4), "4x": (84, 5)}, {"2x": 0.62, "4x": 0.48}),
        few_steps={"leave": 1.0, "start_timestep": 499.0, "steps": 2},
    ),
    "draft": MethodPreset(
        "two steps at the last size, without guidance",
        values={
            "sdxl":    {"leave": 0.8, "start_timestep": 249.0, "steps": 2, "guidance": 0.0},
            "sd2-768": {"leave": 0.8, "start_timestep": 178.0, "steps": 2, "guidance": 0.0},
            "sd":      {"leave": 0.8, "start_timestep": 101.0, "steps": 2, "guidance": 0.0},
            "flow":    {"leave": 0.8, "start_timestep": 409.0, "steps": 2, "guidance": 0.0, "patches_only": True},
        },
        calls={"sdxl": (44, 56, 119), "sd2-768": (44, 56, 120), "sd": (44, 56, 120), "flow": (47.5, 69, 186)},
        tflop=(680, 1276, 7550),
        unet_gib=(5.4, 7.3, 14.7),
        measured=Measured(64, {"2x": (89, 4), "4x": (83, 5)}, {"2x": 0.57, "4x": 0.39}),
        few_steps={"leave": 1.0, "start_timestep": 249.0, "steps": 1},
    ),
}  # fmt: skip
"""With a model for few steps a level starts at a timestep that such models are made for."""


def family_of(info: ModelInfo) -> str | None:
    """Return the family of a picture model: of UNets by the training size and whether it is told sizes; or None."""
    if info.backbone == "flow":
        return "flow"
    cells = {side // info.cell for side in info.native}
    unets = {name: one for name, one in FAMILIES.items() if not one.is_flow}
    found = (name for name, one in unets.items() if {one.cells} == cells and one.is_xl == info.size_ids)
    return next(found, None) if info.unet_class == "UNet2DConditionModel" and not info.is_video else None


def preset_values(preset: Any, info: ModelInfo, *, few_steps: bool) -> dict[str, Values]:
    """Return the values of a preset's method for a model, by the method's name; none where none are known for it.

    `few_steps`: of a model that was made for few steps.
    """
    if (name := method_preset_in(preset)) is None:
        return {}
    family = family_of(info)
    values = TABLE[name].few_steps if few_steps else TABLE[name].values[family] if family else {}
    if family == "flow" and values:
        values = _for_flow(values, info, few_steps=few_steps)
    return {METHOD_PRESETS[name]: values} if values else {}


def _for_flow(values: Values, info: ModelInfo, *, few_steps: bool) -> Values:
    """Return the values of a transformer of any training size; those for few steps are of any size as they are."""
    if few_steps:
        return {**values, "patches_only": True}
    share = values["start_timestep"] / 1000.0
    sigma = share / (1.0 - share) * math.sqrt(math.prod(info.native)) / info.cell / FAMILIES["flow"].cells
    return {**values, "start_timestep": float(round(1000.0 * sigma / (1.0 + sigma)))}


def with_method(values: Mapping[str, Any]) -> Values:
    """Return the written fields of a spec with the method that its preset names.

    Raises `SpecError` for a method of another name beside it.
    """
    fields, name = dict(values), method_preset_in(values.get("preset"))
    if name is None:
        return fields
    method, given = METHOD_PRESETS[name], fields.get("method")
    if given is None or (isinstance(given, dict) and "name" not in given):
        fields["method"] = {"name": method, **(given or {})}
        return fields
    named = given.get("name") if isinstance(given, dict) else getattr(given, "name", given)
    if str(named).partition("/")[0] != method:
        raise SpecError(f"preset: {name!r} is the method {method!r}, and method is {named!r}; leave one of them out")
    return fields


def says_measured(name: str) -> str:
    """Return what was measured for a preset, and what was not, in one line."""
    found, reference = TABLE[name].measured, TABLE["reference"].measured
    scales = (
        f"at {scale} {right} ± {error} % right and {found.detail[scale]:.2f} of true detail"
        + ("" if name == "reference" else f" ({reference.right[scale][0]} ± {reference.right[scale][1]} % and "
           f"{reference.detail[scale]:.2f} with reference)")
        for scale, (right, error) in found.right.items()
    )  # fmt: skip
    of = f"measured on shapes, n = {found.n}, ± one standard error"
    return f"{of}: {', '.join(scales)}; not measured on SDXL or transformers"
