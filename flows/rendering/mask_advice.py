"""Advice on masks: those that cannot show, and what would make them show.

A mask gives its cells another weight of the reference at every step that looks at it. How far it is moved, summed over
these steps, says how much of the mask shows: with the embedded model, at 0.2 no pixel changes by more than 9 of 255
levels, at 0.6 by up to 33, at 1.3 by 46, at 1.8 by 100 (docs/how-to/control-detail.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from freescale import base_size_for
from freescale.detail import detail_weight, reference_weight
from freescale.methods.freescale import FreeScale
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.media.picture import LoadPicture
from stages.settings import resolve
from stages.stage import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.rendering.job import Job
    from freescale import Schedule
    from stages.call import Call
    from stages.spec import Region

FAINT, CLEAR = 0.3, 1.0  # sums of weights: below the first a mask is remarked, and an advice reaches the second
SCALES = (0.5, 0.2, 0.0, 5.0, 20.0)  # that are proposed
RESTARTS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


@dataclass(frozen=True)
class _Use:
    """A mask at one level: the scales in it and around it, and the steps that look at the reference."""

    schedule: Schedule
    steps: tuple[int, ...]
    rest: float
    inside: float
    whitest: float = 1.0  # of its latent cells, 0 to 1

    def moved(self) -> float:
        """How far the mask moves the reference's weight where it is whitest, summed over the steps."""
        exponent = self.whitest * self.inside + (1 - self.whitest) * self.rest
        kappas = (detail_weight(self.schedule.timesteps[i], self.schedule.num_train_timesteps) for i in self.steps)
        return sum(abs(float(reference_weight(k, self.rest) - reference_weight(k, exponent))) for k in kappas)

    def shows(self) -> bool:
        """Whether the mask is clear to see."""
        return self.moved() >= CLEAR


def mask_remarks(job: Job) -> Iterator[str]:
    """Sentences on the masks of a render that cannot show, or hardly can."""
    plan = job.plan
    levels = resolve(plan.spec, plan.info, plan.sizes)
    regions = levels[-1].detail_pass.regions
    calls = [call for call in plan.calls if isinstance(call.stage, DenoiseStage) and call.level]
    using = [call for call in calls if getattr(levels[call.level], call.stage.name).regions == regions]
    for index, region in enumerate(regions):
        if why := _why_not(job, index, region, calls, using):
            yield f"mask {Path(region.mask).name!r} {why}"


def _why_not(job: Job, index: int, region: Region, calls: list[Call], using: list[Call]) -> str | None:
    """What keeps a mask from showing, and what would make it show; None: it shows."""
    last = len(job.plan.sizes) - 1
    if not last:
        info, large = job.plan.info, (64 * job.spec.height, 64 * job.spec.width)
        height, width = base_size_for(large, info.native, cell=info.grain)
        more = f"{2 * width}x{2 * height} has more" if job.spec.cascade == "auto" else "give the cascade more"
        return f"does nothing: a mask acts where a picture is enlarged, and this render has one level; {more}"
    method = resolve(job.spec, job.plan.info, job.plan.sizes)[-1].detail_pass.method
    assert isinstance(method, FreeScale)
    if not method.lerp:
        return "does nothing: with lerp off no step looks at the reference; leave out --no-lerp"
    uses = [_use(job, index, region, [c for c in using if c.level == level], method) for level in range(1, last + 1)]
    best = max(uses, key=_Use.moved)
    whole = replace(best, whitest=1.0)
    if best.moved() >= FAINT:
        return None
    if not best.whitest:
        return "does nothing: it is black in every latent cell; white is where its detail scale holds"
    if whole.moved() >= FAINT:
        cell = f"{100 * best.whitest:.2g} % white"
        return f"hardly shows: its whitest latent cell is {cell}; paint it white, or larger than a cell"
    late = _use(job, index, region, [call for call in calls if call.level == last], method)
    ways = " or ".join(_ways(job, whole, replace(late, whitest=1.0))) or "a size with more levels, or more steps"
    return (
        f"{'hardly shows' if best.moved() else 'does nothing'}: its detail scale is {region.detail_scale:g} and that "
        f"around it {best.rest:g}, in {len(best.steps)} of {len(best.schedule)} steps, since a level restarts at "
        f"{method.restart:g}; {ways} would show it"
    )


def _ways(job: Job, use: _Use, late: _Use) -> Iterator[str]:
    """What would make a mask show, as options: more steps of a redo, an earlier restart, another scale."""
    redo = job.spec.redo[-1].stage if job.origin and job.spec.redo else None
    if redo == "detail_pass" and late.shows():
        yield "--from highres_denoise"
    steps, schedule = len(use.schedule), use.schedule
    for restart in RESTARTS:
        begin = schedule.step_at(restart) + 1
        if begin < min(late.steps, default=steps) and replace(use, steps=tuple(range(begin, steps))).shows():
            yield f"--from renoise --restart {restart:g}" if redo else f"--restart {restart:g}"
            break
    for scale in SCALES:
        if replace(use, inside=scale).shows():
            yield f"a detail scale of {scale:g} in it"
            break


def _use(job: Job, index: int, region: Region, calls: list[Call], method: FreeScale) -> _Use:
    """How a mask is used by the stages `calls` of one level, which may be none."""
    stages = [call.stage for call in calls if isinstance(call.stage, DenoiseStage)]
    schedule = _schedule(job)
    rest = float(stages[-1].method["detail_scale"]) if stages else method.detail_scale
    restart = method_of(stages[-1].method).restart_step(schedule) if stages else None
    steps = tuple(i for stage in stages for i in range(stage.start, stage.stop) if i != restart)
    whitest = max((_whitest(call, index) for call in calls if f"mask{index}" in call.parents), default=1.0)
    return _Use(schedule, steps, rest, region.detail_scale, whitest)


def _schedule(job: Job) -> Schedule:
    stage = next(call.stage for call in job.plan.calls if isinstance(call.stage, DenoiseStage))
    return stage.sampling.schedule_on(job.plan.info.scheduler)


def _whitest(call: Call, index: int) -> float:
    """The white of a mask's whitest latent cell, 0 to 1; a mask whose file is gone, of a run gone on with, has 1."""
    loading = call.parents[f"mask{index}"].stage
    assert isinstance(loading, LoadPicture)
    try:
        mask = loading.decoded()
    except SpecError:
        return 1.0
    height, width = (side // call.cell for side in call.size)
    small = mask.size[0] >= width and mask.size[1] >= height
    cells = mask.resize((width, height), Image.Resampling.BOX) if small else mask
    return max(cells.tobytes()) / 255
