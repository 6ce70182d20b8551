"""Remarks on sampling before renders start: a nearest solver, what a model predicts, steps that are not a preset's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.denoise import DenoiseStage
from stages.models.card import values_for
from stages.models.method_presets import FAMILIES, family_of
from stages.models.presets import METHOD_PRESETS, PRESETS, few_steps_in, method_preset_in, named_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.rendering.job import Job
    from stages.denoise import Sampling

STRONG = 5.0  # guidance from which zero terminal SNR overexposes (arXiv:2305.08891, section 3.4)
DEEPCACHE_ERRORS = "46, 40 and 32 dB with 2, 3 and 5"  # PSNR at level 0 of `shapes` (docs/lab/speed.md)
TODO_ERRORS = "62 dB with freescale and 39 dB with direct"  # at twice the training size of `shapes`
NOISE_ALONE = 0.9  # of the training time: a restart there keeps next to nothing of the level below


def sampling_remarks(job: Job) -> Iterator[str]:
    """Yield a sentence for each thing about the solver, the prediction or the steps that a person may not expect."""
    stages = [call.stage for call in job.plan.calls if isinstance(call.stage, DenoiseStage)]
    if not stages:
        return
    spec, info, sampling = job.spec, job.plan.info, stages[0].sampling
    published = None if info.is_video else spec.method.build().solver
    if info.scheduler_remark and spec.solver == "auto" and published is None:
        yield info.scheduler_remark
    yield from _prediction(job, sampling)
    yield from _preset(job, sampling)
    yield from _accelerations(job, stages)
    yield from _method_preset(job)
    schedule = sampling.schedule_on(info.scheduler)
    above = [stage for stage in stages if stage.level and stage.start == 0]
    if above and schedule.timesteps[0] >= NOISE_ALONE * schedule.num_train_timesteps and len(schedule) == 1:
        yield "with one step a higher level begins from noise, and keeps little of the one below; more steps keep more"


def _prediction(job: Job, sampling: Sampling) -> Iterator[str]:
    """Remarks on what the UNet predicts."""
    found = job.plan.info.prediction
    if found is None:
        return
    if found.remark:
        yield found.remark
    elif not found.is_sure:
        yield f"the file does not say what it predicts: {found.type} is planned, and a probe decides before the render"
    if not found.ztsnr:
        return
    if sampling.guidance_scale > STRONG and sampling.guidance_rescale == 0.0:
        yield (
            f"with zero terminal SNR a guidance scale of {sampling.guidance_scale:g} makes pictures too bright or too "
            "dark; --guidance-rescale 0.7 sets that right"
        )
    config = job.plan.info.scheduler
    spacing = config.get("timestep_spacing") if sampling.timestep_spacing == "auto" else sampling.timestep_spacing
    if spacing in (None, "leading", "lcm") and sampling.sigmas in ("auto", "uniform"):
        yield (
            f"timestep_spacing {spacing or 'leading'} does not begin at the last timestep, so zero terminal SNR has no "
            "effect; --timestep-spacing trailing begins there"
        )


def _preset(job: Job, sampling: Sampling) -> Iterator[str]:
    """Remarks on a preset with other steps, and on a model whose name speaks of one."""
    if (asked := few_steps_in(job.spec.preset)) is not None:
        preset = PRESETS[asked]
        if sampling.steps > (preset.most_steps or preset.steps) or (
            preset.most_steps is None and sampling.steps != preset.steps
        ):
            most = f"1 to {preset.most_steps}" if preset.most_steps else f"{preset.steps}"
            yield f"the preset {asked} is for {most} steps, and {sampling.steps} are taken"
        return
    hint = named_in(Path(job.plan.info.name).name)
    if hint is not None and sampling.steps > (PRESETS[hint].most_steps or PRESETS[hint].steps):
        yield (
            f"the name {Path(job.plan.info.name).name} speaks of few steps, and {sampling.steps} are taken; "
            f"--preset {hint} samples it as its authors do"
        )


def _accelerations(job: Job, stages: Sequence[DenoiseStage]) -> Iterator[str]:
    """Remarks on accelerations that change the picture, with the error that was measured."""
    spec, info = job.spec, job.plan.info
    if cached := [stage for stage in stages if stage.deepcache]:
        full = sum(
            len(stage.full_steps(stage.sampling.schedule_on(info.scheduler, stage.walk))) - 1 for stage in cached
        )  # one past the last is no step
        steps = sum(stage.passes for stage in cached)
        yield (
            f"deepcache {spec.deepcache} runs the whole UNet at {full} of {steps} steps, which changes the picture; on "
            f"shapes its PSNR to the picture without it is {DEEPCACHE_ERRORS}"
        )
    if spec.todo is None:
        return
    if thinned := [f"{stage.size[1]}x{stage.size[0]}" for stage in stages if stage.thinning]:
        where = ", ".join(dict.fromkeys(thinned))
        yield (
            f"todo {spec.todo} thins keys and values at {where}, which changes the picture; on shapes its PSNR to the "
            f"picture without it is {TODO_ERRORS}"
        )
    else:
        yield "todo auto thins nothing here: no level is larger than the training size"


def _method_preset(job: Job) -> Iterator[str]:
    """A remark on the preset of a method whose values were not measured on a model."""
    name, family = method_preset_in(job.spec.preset), family_of(job.plan.info)
    if name is None or values_for(METHOD_PRESETS[name], job.plan.info.method_defaults):
        return
    if few_steps_in(job.spec.preset) is not None or job.plan.info.is_quick:
        source = "proposed for models for few steps"
    elif family is None:
        source = f"those for SDXL, since there are none for {job.plan.info.name}"
    else:
        source = f"{FAMILIES[family].source} for {FAMILIES[family].says}"
    yield f"the values of the preset {name} are {source}, and not measured; `freescale presets` says what was measured"
