"""Accelerations that change the picture: what a spec asks for, stage by stage, and what cannot be had.

DeepCache (`freescale/deepcache.py`) acts at level 0, or at every level; ToDo (`freescale/todo.py`) wherever its factor
is above 1. Both are parameters of the stages that they act in, and of no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from freescale import METHODS
from freescale.deepcache import branches
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.stage import method_of

if TYPE_CHECKING:
    from stages.models.info import ModelInfo
    from stages.spec import RenderSpec
    from stages.stage import Stage

UNETS = ("UNet2DConditionModel",)  # in whose blocks the accelerations are known to be right


def check_accelerations(spec: RenderSpec, info: ModelInfo) -> None:
    """Raise `SpecError` for an acceleration that the model or the method cannot have; `spec` is settled."""
    if spec.deepcache is None and {"deepcache_branch", "deepcache_levels"} & spec.model_fields_set:
        raise SpecError("deepcache: it is off, so deepcache_branch and deepcache_levels say nothing; set it, such as 2")
    for name, value in (("deepcache", spec.deepcache), ("todo", spec.todo)):
        if value is not None and (info.is_video or info.unet_class not in UNETS):
            raise SpecError(f"{name}: {value} is for picture models with a {UNETS[0]}, and {info.name} is none")
    if spec.deepcache is None:
        return
    levels, found = spec.deepcache_levels, METHODS[spec.method.name].keeps_features
    if found not in ("all", levels):
        able = [name for name, kind in METHODS.items() if kind.keeps_features in ("all", levels)]
        where = "level 0" if levels == "base" else "levels above 0"
        raise SpecError(f"deepcache: it is not known to be right at {where} of {spec.method.name}; {_any_of(able)} can")
    if spec.image is not None and levels == "base":
        raise SpecError(
            "deepcache: with an image there is no level 0 to sample; deepcache_levels all is for the others"
        )
    blocks, layers = len(info.configs["unet"]["down_block_types"]), info.configs["unet"].get("layers_per_block", 2)
    most = branches([layers] * blocks if isinstance(layers, int) else layers) - 1
    if spec.deepcache_branch > most:
        raise SpecError(f"deepcache_branch: {spec.deepcache_branch} is beyond {most}, the last one of {info.name}")


def accelerated(stage: Stage, spec: RenderSpec) -> Stage:
    """Return a stage with the accelerations that act in it. Raises `SpecError` where its method cannot have one."""
    if not isinstance(stage, DenoiseStage):
        return stage
    if spec.deepcache is not None and (stage.level == 0 or spec.deepcache_levels == "all"):
        stage = replace(stage, deepcache=(spec.deepcache, spec.deepcache_branch))
    thinning = _thinning(stage, spec)
    if max(thinning) <= 1.0:
        return stage
    if not method_of(stage.method).thins:
        able = [name for name, kind in METHODS.items() if kind().thins]
        name = stage.method["name"]
        raise SpecError(f"todo: {name} as it is set has attention of its own at {_size(stage)}; {_any_of(able)} can")
    return replace(stage, thinning=thinning)


def _thinning(stage: DenoiseStage, spec: RenderSpec) -> tuple[float, float]:
    """The factors of a stage, 1 where nothing is thinned."""
    if spec.todo == "auto":
        height, width = (max(1.0, side / base) for side, base in zip(stage.size, stage.base_size, strict=True))
        return height, width
    return (1.0, 1.0) if spec.todo is None else (float(spec.todo), float(spec.todo))


def _size(stage: DenoiseStage) -> str:
    return f"{stage.size[1]}x{stage.size[0]}"


def _any_of(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
