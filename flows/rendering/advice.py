"""Advice before renders start: settings that are valid but slow, or that make worse pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flows.rendering.adapters import adapter_remarks
from flows.rendering.mask_advice import mask_remarks
from flows.rendering.prompts import prompt_remarks
from flows.rendering.sampling_advice import sampling_remarks
from freescale.methods.demofusion.method import DemoFusion
from freescale.methods.freescale import FreeScale
from stages.denoise import DenoiseStage, HighresDenoise
from stages.media.picture import LoadPicture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flows.rendering.job import Job
    from stages.device import Named

FEW_STEPS = 20  # of DemoFusion: with 8 steps its pictures are covered by grain, with 24 hardly (docs/lab/results.md)


def remarks(jobs: Iterable[tuple[str, Job]], device: Named) -> list[str]:
    """Sentences on prompts, models, sampling, pictures, masks, too few steps, and an emulated dtype; each once.

    Each job comes with a label for its sentences, which is empty where there is only one job.
    """
    return list(dict.fromkeys(text for label, job in jobs for text in _remarks(label and f"{label}: ", job, device)))


def _remarks(label: str, job: Job, device: Named) -> Iterator[str]:
    yield from (label + remark for remark in (*prompt_remarks(job), *adapter_remarks(job), *sampling_remarks(job)))
    method, plan, dtype = job.spec.method.build(), job.plan, job.spec.model.dtype
    denoising = [call.stage for call in plan.calls if isinstance(call.stage, DenoiseStage)]
    enlarges = len(plan.sizes) > 1
    for call in plan.calls:
        if isinstance(call.stage, LoadPicture):
            yield from (label + remark for remark in call.stage.remarks)
    yield from (label + remark for remark in mask_remarks(job))
    if device.type == "cpu" and not _computes(dtype):
        yield f"this CPU only emulates {dtype}, many times slower than float32"
    if enlarges and method.upscaler is not None:
        yield f"{label}the estimates of time and memory leave out the network of {Path(method.upscaler).name}"
    dilates = isinstance(method, FreeScale) and method.dilate and enlarges
    if dilates and not any(isinstance(stage, HighresDenoise) for stage in denoising):
        yield f"{label}no step is dilated; with more steps, an earlier restart or a later end of dilation some would be"
    if isinstance(method, DemoFusion) and enlarges and (steps := denoising[0].sampling.steps) < FEW_STEPS:
        yield f"{label}with {steps} steps DemoFusion leaves grain; it was published with 50, and 24 hardly leave any"


def _computes(dtype: str) -> bool:
    """Whether a CPU's matrix products take the dtype as it is."""
    if dtype in ("bfloat16", "float8_e4m3fn"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == "float16":
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
