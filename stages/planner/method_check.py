"""Whether a method can work in a model's UNet, found before any work by changing one without weights.

What only a method together with a UNet can say (levels, blocks, names of layers) is known to the method alone, so it is
asked: `Method.check_unet` makes and undoes the changes of every step. An answer without an error is kept with the
traces, by all that it depends on; a refusal is never kept.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from freescale import METHODS, Level
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.planner.configurations import configurations
from stages.planner.trace_cache import cached_trace
from stages.settings import able_methods
from stages.stage import method_of

if TYPE_CHECKING:
    from freescale import Method
    from stages.models.folder import ModelInfo
    from stages.plan import Plan

VERSION = 1  # of what is checked


def check_methods(plan: Plan) -> None:
    """Raise `SpecError` for a method that cannot work in the model's UNet at a level's size, with those that can."""
    for call in plan.calls:
        if isinstance(call.stage, DenoiseStage) and not METHODS[call.stage.method["name"]].any_unet:
            _check(call.stage, plan.info)


def _check(stage: DenoiseStage, info: ModelInfo) -> None:
    """Ask the method of a stage, where the answer is not known."""
    asked = (stage.method, stage.size, stage.base_size, stage.level, stage.start, stage.stop, stage.sampling.steps)
    configs = configurations(info, "unet")
    cached_trace(partial(_answer, stage, info), "method", VERSION, asked, info.cell, info.frames, configs)


def _answer(stage: DenoiseStage, info: ModelInfo) -> tuple[float, ...]:
    """Return nothing worth knowing where the method does not raise; else raise `SpecError`."""
    try:
        _ask(stage, method_of(stage.method), info)
    except ValueError as error:
        raise SpecError(f"method: {stage.method['name']!r} with {info.name}: {error}{_others(stage, info)}") from None
    return ()


def _ask(stage: DenoiseStage, method: Method, info: ModelInfo) -> None:
    """Make the changes of all steps of a stage to the UNet without weights. Raises `ValueError`."""
    from stages.planner.skeleton import skeleton  # diffusers, where the answer is not known

    unet = skeleton(info, "unet", "float32").module
    schedule = stage.sampling.schedule_on(info.scheduler, stage.walk)
    level = Level(stage.level, stage.size, stage.base_size, info.cell, frames=info.latent_frames)
    method.check_unet(unet, level, schedule, range(stage.start, stage.stop))


def _others(stage: DenoiseStage, info: ModelInfo) -> str:
    """Return which methods can work at this size, where the method of a stage cannot with its defaults either."""
    able = []
    for name in able_methods(info):
        try:
            _ask(stage, METHODS[name](), info)
        except ValueError:
            continue
        able.append(name)
    return "" if stage.method["name"] in able else f"; {', '.join(able)} can"
