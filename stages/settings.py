"""What holds where in a render: the model's own values for what a spec leaves unsaid, and every `redo` resolved.

`settled` fills in the model's values. `resolve` then gives, for every level, the method, seed, guidance scale and
regions of each of its stages. What comes back is plain data: the plan reads it and asks the spec for nothing of this.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from freescale import METHODS, SOLVERS, Method, base_size_for
from freescale.flow_levels import rule_at
from stages.errors import SpecError, sentence
from stages.media.ffmpeg import check_encoding
from stages.models.card import merged, values_for
from stages.models.folder import needs_few_steps
from stages.models.info import nearest_frames
from stages.models.method_presets import preset_values
from stages.models.presets import METHOD_PRESETS, few_steps_in, method_values
from stages.prompts.reading import settled_prompts
from stages.spec import (
    IMAGE_FORMATS,
    LOSSY,
    VIDEO_FORMATS,
    Redo,
    Region,
    RenderSpec,
    changed_method,
    exact_rate,
    off_grain,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale import Solver
    from freescale.flow_levels import ShiftRule
    from stages.models.folder import ModelInfo
    from stages.spec import MethodSpec
    from stages.stage import Size

FEW_STEP_SOLVERS = ("euler_ancestral", "lcm", "tcd")  # of models that need few steps
STAGES = ("base_denoise", "upscale", "renoise", "highres_denoise", "detail_pass")  # of a level, in the order they run


@dataclass(frozen=True)
class StageSettings:
    """What holds at one stage of one level. Regions are soft masks with a detail scale each."""

    method: Method
    seed: int
    guidance_scale: float
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class LevelSettings:
    """What holds at the stages of one level, which are fields by their names; level 0 runs `base_denoise` alone."""

    level: int
    size: Size
    base_denoise: StageSettings
    upscale: StageSettings
    renoise: StageSettings
    highres_denoise: StageSettings
    detail_pass: StageSettings
    shift_rule: ShiftRule | None = None  # that the spec asks for

    @property
    def rule(self) -> ShiftRule:
        """The rule of a flow model's noise levels: that of the spec, else the method's."""
        return self.shift_rule or rule_at(self.upscale.method.shift_rule, self.level)


def resolve(spec: RenderSpec, info: ModelInfo, sizes: Sequence[Size]) -> tuple[LevelSettings, ...]:
    """Return the settings of every level of a settled spec, after every redo at or before each of its stages.

    `sizes` are those of the levels. Raises `SpecError` for a redo beyond the last level, and for another number of
    shift rules than levels.
    """
    for change in spec.redo:
        if change.level >= len(sizes):
            raise SpecError(f"redo.level: {change.level} is beyond the last level, {len(sizes) - 1}")
    rules = spec.shift_rule
    if isinstance(rules, tuple) and len(rules) != len(sizes):
        raise SpecError(f"shift_rule: {len(rules)} values for {len(sizes)} levels; give one for each, or one for all")
    levels = tuple(
        LevelSettings(
            level,
            size,
            **{stage: _settings_at(spec, info, stage, level) for stage in STAGES},
            shift_rule=None if rules is None else rule_at(rules, level),
        )
        for level, size in enumerate(sizes)
    )
    if info.backbone == "flow":
        from stages.models.flow.positions import check_positions  # here, since a UNet needs none of it

        for each in levels:
            for settings in (each.highres_denoise, each.detail_pass) if each.level else (each.base_denoise,):
                check_positions(info, each.size, getattr(settings.method, "positions", "none"))
    return levels


def level_sizes(spec: RenderSpec, info: ModelInfo) -> tuple[tuple[Size, ...], Size]:
    """Return the sizes of all levels, and the size that a cascade begins at, which a render of one level need not have.

    Raises `SpecError` for a side that does not come to whole latent cells of the model, with the nearest that do.
    """
    for name, side in (("width", spec.width), ("height", spec.height)):
        if side % info.grain:
            raise SpecError(f"{name}: {off_grain(side, info.grain)} with {info.name}")
    base = base_size_for(spec.size, info.native, cell=info.grain)
    if spec.cascade == "auto":
        sizes = spec.method.build().sizes(spec.size, base, info.grain)
    else:
        sizes = tuple((height, width) for width, height in spec.cascade)
    for height, width in sizes:
        if height % info.grain or width % info.grain:
            raise SpecError(
                f"cascade: level {width}x{height} is not in multiples of {info.grain}, as {info.name} needs"
            )
    return sizes, sizes[0] if len(sizes) > 1 else base


def _settings_at(spec: RenderSpec, info: ModelInfo, stage: str, level: int) -> StageSettings:
    method, seed, guidance, regions = spec.method, spec.seed, spec.guidance_scale, spec.regions
    for change in spec.redo:
        if _reaches(change, stage, level):
            method = changed_method(method, change.method)
            seed = seed if change.seed is None else change.seed
            guidance = guidance if change.guidance_scale is None else change.guidance_scale
            regions = regions if change.regions is None else change.regions
    if guidance is None and info.guidance_scale > 1.0 and (published := method.build().guidance_scales):
        guidance = published[min(level, len(published) - 1)]
    scale = info.guidance_scale if guidance is None else guidance
    return StageSettings(method.build(), seed, float(scale), regions)


def _reaches(change: Redo, stage: str, level: int) -> bool:
    """Whether a redo holds at this stage of this level."""
    return (level, STAGES.index(stage)) >= (change.level, STAGES.index(change.stage))


def settled(spec: RenderSpec, info: ModelInfo) -> RenderSpec:
    """Return the spec with the model's own values where it gives none, so that a record of it is complete.

    Adapters with the weights 0, which change nothing, are left out. Raises `SpecError` for a method or a field that
    cannot be had with the model.
    """
    if idle := [each for each in spec.model.loras if not any(each.weights)]:
        loras = tuple(each for each in spec.model.loras if each not in idle)
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"loras": loras})})
    method = spec.method
    if info.backbone == "flow":
        _check_flow(spec, info)
    elif spec.shift_rule is not None:
        raise SpecError(f"shift_rule: {spec.shift_rule!r} is for flow models, and {info.name} is none; leave it out")
    if info.is_video and not method.build().video:
        able = ", ".join(able_methods(info))
        raise SpecError(f"method: {method.name!r} makes images only; {able} make videos with {info.name}")
    video = _video_settings(spec, info) if info.is_video else _picture_settings(spec, info)
    method = settled_method(method, info, spec.preset)
    _check_backbone(method, info)
    return spec.model_copy(update={"method": method, **video, **settled_prompts(spec, info)})


def able_methods(info: ModelInfo) -> list[str]:
    """Return the names of the methods for a model's kind of network, and for videos where it makes these."""
    kinds = {name: kind for name, kind in METHODS.items() if kind.video or not info.is_video}
    return [name for name, kind in kinds.items() if info.backbone in kind.backbones]


def _check_backbone(method: MethodSpec, info: ModelInfo) -> None:
    """Raise `SpecError` for a method, or a value of it, that has no meaning with the model's network."""
    if method.name not in (able := able_methods(info)):
        raise SpecError(
            f"method: {method.name!r} is for UNets, and {info.name} is none; {', '.join(able)} work with it"
        )
    made = method.build()
    try:
        made.check_backbone(info.backbone)
    except ValueError as error:
        raise SpecError(f"method: {error}, such as {info.name}") from None
    if made.needs:
        from stages.models.flow.methods import check_needs  # here, since a UNet needs none of it

        check_needs(made, info)


def _check_flow(spec: RenderSpec, info: ModelInfo) -> None:
    """Raise `SpecError` for a field that a transformer trained by flow matching has no meaning for."""
    if (few := few_steps_in(spec.preset)) is not None:
        raise SpecError(
            f"preset: {few!r} says how UNets are sampled, and {info.name} is a transformer; leave it out, or give a "
            f"preset of a method: {', '.join(METHOD_PRESETS)}"
        )
    for name in ("prompt_syntax", "emphasis", "deepcache", "todo", "timesteps"):
        if (value := getattr(spec, name)) and (name, value) != ("prompt_syntax", "plain"):
            raise SpecError(f"{name}: {value!r} is for UNets, and {info.name} is a transformer; leave it out")
    if spec.timestep_spacing != "auto":
        raise SpecError(f"timestep_spacing: {spec.timestep_spacing!r} is for UNets; leave it out with {info.name}")
    if info.takes_guidance and spec.negative_prompt:
        raise SpecError(f"negative_prompt: guidance was distilled into {info.name}, which reads none; leave it out")
    if info.is_distilled and spec.negative_prompt:
        raise SpecError(f"negative_prompt: {info.name} was distilled to work without guidance; leave it out")


def settled_method(method: MethodSpec, info: ModelInfo, preset: Any = None) -> MethodSpec:
    """Return the method with values of the preset and of the model's card where it has none.

    What a preset says of a model for few steps comes before the card, and the card before what it says of a family.
    Last come the usual values of a family of transformers.
    """
    asked = few_steps_in(preset) is not None
    few = asked or needs_few_steps(info.solver, info.scheduler) or info.is_quick
    own_preset = preset_values(preset, info, few_steps=few)
    usual, over = ({}, own_preset) if asked else (own_preset, {})
    of_model = merged(merged(info.family_methods, usual), info.method_defaults)
    every = merged(of_model, merged(method_values(preset), over))
    own = values_for(method.name, every)
    left_open = {name: value for name, value in own.items() if name not in method.model_fields_set}
    try:
        return type(method).model_validate(method.model_dump() | left_open)
    except ValidationError as error:
        raise SpecError(f"method: the card of {info.name}: {sentence(error)}") from None


def _picture_settings(spec: RenderSpec, info: ModelInfo) -> dict[str, Any]:
    """Return the format of a picture. Raises `SpecError` for a field that only a video has."""
    for name in ("frames", "fps", "motion_fps", "crf", "pixel_format"):
        if getattr(spec, name) is not None:
            raise SpecError(
                f"{name}: {getattr(spec, name)} is for videos, and {info.name} makes pictures; leave it out"
            )
    if spec.format not in (None, *IMAGE_FORMATS):
        raise SpecError(
            f"format: {spec.format} is for videos, and {info.name} makes pictures: {', '.join(IMAGE_FORMATS)}"
        )
    return {"format": spec.format or "png"}


def _video_settings(spec: RenderSpec, info: ModelInfo) -> dict[str, Any]:
    """Return format, frames and rates of a video. Raises `SpecError` for a field that it cannot have."""
    if spec.format not in (None, *VIDEO_FORMATS):
        raise SpecError(
            f"format: {spec.format} is for pictures, and {info.name} makes videos: {', '.join(VIDEO_FORMATS)}"
        )
    if spec.image is not None:
        raise SpecError(f"image: {info.name} makes videos, and none can start from a picture; leave it out")
    if spec.motion_fps is not None and info.motion_fps is None:
        raise SpecError(f"motion_fps: {info.name} has no fps branch to tell it to; leave it out")
    frames = spec.frames or info.frames or 1
    if (frames - 1) % info.time_cell:
        raise SpecError(f"frames: with {info.name}, {nearest_frames(frames, info.time_cell)}; {frames} is between them")
    format = spec.format or "mp4"
    check_encoding(format, spec.size, spec.pixel_format)
    for name in ("crf", "pixel_format"):
        if getattr(spec, name) is not None and format not in LOSSY:
            raise SpecError(f"{name}: {getattr(spec, name)} is for {' and '.join(LOSSY)}, not for {format}")
    return {
        "format": format,
        "frames": frames,
        "fps": spec.fps or exact_rate(info.fps),
        "motion_fps": spec.motion_fps or info.motion_fps,
    }


def placed(spec: RenderSpec, input_root: Path | None) -> RenderSpec:
    """Return the spec with absolute paths, so that a record of it can be rendered from any folder.

    Relative ones are under `input_root` (None: the working folder).
    """
    root = (input_root or Path()).absolute()

    def whole(path: str) -> str:
        return str(root / os.path.expanduser(path))

    def all_whole(regions: tuple[Region, ...]) -> tuple[Region, ...]:
        return tuple(region.model_copy(update={"mask": whole(region.mask)}) for region in regions)

    def with_file(values: dict[str, Any]) -> dict[str, Any]:
        named = isinstance(values.get("upscaler"), str)
        return values | {"upscaler": whole(values["upscaler"])} if named else values

    changes = [
        change.model_copy(
            update={
                "method": with_file(change.method),
                "regions": change.regions if change.regions is None else all_whole(change.regions),
            }
        )
        for change in spec.redo
    ]
    image = None if spec.image is None else whole(spec.image)
    loras = tuple(
        each.model_copy(update={"file": whole(each.file)}) if os.path.isfile(whole(each.file)) else each
        for each in spec.model.loras
    )
    model = spec.model.model_copy(update={"loras": loras}) if loras else spec.model
    method = spec.method.model_copy(update=with_file(spec.method.model_dump(include={"upscaler"})))
    own = {"image": image, "model": model, "method": method, "regions": all_whole(spec.regions), "redo": tuple(changes)}
    return spec.model_copy(update=own)


def solver_of(spec: RenderSpec, info: ModelInfo) -> tuple[Solver, float]:
    """Return (solver, eta): the spec's, else the method's as published, else the model's. eta is in [0, 1].

    A few-step model keeps its own solver. No solver is published for videos, so they have the model's. The eta is the
    spec's, else the published one, else what is usual for the solver.
    """
    published = None if info.is_video else spec.method.build().solver
    if spec.solver == "auto" and published is not None and info.solver not in FEW_STEP_SOLVERS:
        solver, eta = published
    else:
        solver = info.solver if spec.solver == "auto" else spec.solver
        eta = SOLVERS[solver].usual_eta
    return solver, eta if spec.eta is None else spec.eta
