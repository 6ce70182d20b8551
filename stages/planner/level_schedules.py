"""The noise levels of all steps at each level of a render."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale import Schedule
    from stages.denoise import Sampling
    from stages.models.info import ModelInfo
    from stages.settings import LevelSettings
    from stages.stage import Size


def schedules(info: ModelInfo, sampling: Sampling, levels: Sequence[LevelSettings], base: Size) -> tuple[Schedule, ...]:
    """Return the noise levels of each level: one schedule for all, unless a flow model's shift changes with the size.

    `base` is the size that a cascade begins at. Raises `SpecError` where a method needs the same at all levels and a
    rule gives others, `ValueError` for steps or a rule that give none.
    """
    if info.backbone == "unet":
        return (sampling.schedule_on(info.scheduler),) * len(levels)
    found = tuple(sampling.schedule(info, (), level.size, base, level.rule) for level in levels)
    for level, schedule in zip(levels, found, strict=True):
        method = level.upscale.method
        if method.asks_trajectory and schedule.sigmas != found[0].sigmas:
            rule = level.rule if isinstance(level.rule, str) else f"{level.rule:g}"
            raise SpecError(
                f"shift_rule: {rule} at level {level.level} gives other noise levels than at level 0, and "
                f"{method.name!r} follows level 0 step by step; cap works, or one number for all levels"
            )
    return found
