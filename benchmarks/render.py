"""How long does the denoising of a whole picture take, and what memory?

    python -m benchmarks.render

FreeScale's cascade with SDXL's configuration and random weights, made on the device: 1024, 2048 and 4096 pixels a side
in 50 steps and, on a GPU with more than 40 GiB, three steps at 8192 of which the rest is extrapolated (said so in the
row). On a CPU a small UNet at 256, 512 and 1024. The VAE is left out; a made-up reference stands for it.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from benchmarks.harness import Measurement, arguments, matmul_rate, peak_memory, report, synchronise
from benchmarks.sdxl import SCHEDULER, Scale, make_denoiser, make_level, scale_of
from freescale.attention import attention_name
from freescale.methods import FreeScale, Method
from freescale.moment import Moment
from freescale.sampling import denoise
from freescale.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from freescale.guidance import Denoiser


@torch.no_grad()
def level_of(
    factor: int, denoiser: Denoiser, method: Method, schedule: Schedule, scale: Scale, device: torch.device, most: int
) -> Measurement:
    """Return the seconds of all steps of a level, from at most `most` of them (the rest at their median)."""
    level = make_level(scale, int(factor > 1), factor, device)
    start = 0 if level.is_base else method.restart_step(schedule)
    stop = min(len(schedule), start + most)
    latents = method.start((1, 4, *level.latent_hw), Moment(level, start, schedule, 0)).to(device)
    seconds = []
    with peak_memory(device) as peak:
        steps = denoise(denoiser, latents, schedule, method, level, seed=0, start=start, stop=stop)
        while True:
            synchronise(device)
            began = time.perf_counter()
            if next(steps, None) is None:
                break
            synchronise(device)
            seconds.append(time.perf_counter() - began)
    total, left = sum(seconds), len(schedule) - stop
    name = f"{scale.base * factor}, {len(schedule) - start} steps"
    if left:
        total += left * statistics.median(seconds[1:] or seconds)
        name += f" (from {len(seconds)})"
    spread = statistics.pstdev(seconds) / statistics.mean(seconds)
    return Measurement(name, total, spread, peak[0], runs=len(seconds))


def main() -> None:
    """Measure level by level; the sum is a picture's denoising."""
    given = arguments(__doc__ or "")
    device, is_gpu = given.device, given.device.type == "cuda"
    scale = scale_of(device)
    schedule, denoiser = make_schedule(SCHEDULER, 50 if is_gpu else 10), make_denoiser(scale, device)
    rows, totals = list[Measurement](), {}
    for name, method in {"full": FreeScale(), "fast": FreeScale(fast=True)}.items():
        levels = [level_of(f, denoiser, method, schedule, scale, device, 10**6) for f in (1, 2, 4)]
        totals[f"{name}, to {4 * scale.base}"] = sum(row.seconds for row in levels)
        if is_gpu and torch.cuda.get_device_properties(device).total_memory > 40 * 2**30:
            levels.append(level_of(8, denoiser, method, schedule, scale, device, 3))
        rows += [Measurement(f"{name}: {row.name}", *_rest(row)) for row in levels]
    rate = matmul_rate(device, scale.dtype)
    report("render", rows, device, rate, kernels=attention_name(device, scale.dtype), totals=totals)
    for name, total in totals.items():
        print(f"{name}: {total:.1f} s")


def _rest(row: Measurement) -> tuple[float, float, int, float, int]:
    return row.seconds, row.spread, row.peak_bytes, row.flop, row.runs


if __name__ == "__main__":
    main()
