"""What a person would want to know before renders start, and is no error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from freescale.methods.demofusion.method import DemoFusion
from freescale.methods.freescale import FreeScale
from stages.denoise import DenoiseStage
from stages.highres_denoise import HighresDenoise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flows.rendering.session import Job

FEW_STEPS = 20  # of DemoFusion: with 8 grain covers what it draws, with 24 hardly (docs/results.md)


def remarks(jobs: Iterable[tuple[str, Job]], device: torch.device) -> list[str]:
    """A sentence for each method or part of one that has too few steps, and each dtype that the CPU only emulates.

    Jobs come with a label to be told by, "" where there is but one; nothing is said twice.
    """
    return list(dict.fromkeys(said for label, job in jobs for said in _remarks(label and f"{label}: ", job, device)))


def _remarks(label: str, job: Job, device: torch.device) -> Iterator[str]:
    method, plan, dtype = job.spec.method.build(), job.plan, job.spec.model.dtype
    denoising = [call.stage for call in plan.calls if isinstance(call.stage, DenoiseStage)]
    enlarges = len(plan.sizes) > 1
    if device.type == "cpu" and not _computes(dtype):
        yield f"this CPU only emulates {dtype}, many times slower than float32"
    dilates = isinstance(method, FreeScale) and method.dilate and enlarges
    if dilates and not any(isinstance(stage, HighresDenoise) for stage in denoising):
        yield f"{label}no step is dilated; with more steps, an earlier restart or a later end of dilation some would be"
    if isinstance(method, DemoFusion) and enlarges and (steps := denoising[0].sampling.steps) < FEW_STEPS:
        yield f"{label}with {steps} steps DemoFusion leaves grain; it was published with 50, and 24 hardly leave any"


def _computes(dtype: str) -> bool:
    """Whether a CPU's matrix products take the dtype as it is."""
    if dtype == "bfloat16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == "float16":
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
