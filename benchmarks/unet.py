"""What does a guided UNet call cost at each size, and what does each part of the method, each saving, add or take?

    python -m benchmarks.unet [--compile]

Rows: the UNet alone; with FreeU; with scale fusion, full and fast; with dilation, by the device's own kernels and on
phases; then all of FreeScale, with the savings of memory one by one. On a GPU SDXL at 1024 to 4096 pixels a side (8192:
only what the method needs); on a CPU a small one at 128 to 512 (`benchmarks.sdxl`).
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import Measurement, count_flop, matmul_rate, measure, parser, report, settled
from benchmarks.sdxl import SCHEDULER, make_denoiser, make_level, scale_of
from freescale.attention import attention_name
from freescale.forward_process import normal
from freescale.methods import Direct, FreeScale, Method
from freescale.sampling import Moment, make_schedule
from freescale.unet_patches import patched

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from benchmarks.sdxl import Scale
    from freescale.cascade import Level
    from freescale.guidance import Denoiser

STEP = 20  # of 50: inside the dilated ones
METHODS: dict[str, Method] = {
    "UNet": Direct(),
    "with FreeU": FreeScale(fusion=False, dilate=False),
    "with fusion": FreeScale(dilate=False, freeu=None),
    "with fast fusion": FreeScale(dilate=False, freeu=None, fast=True),
    "dilated": FreeScale(fusion=False, freeu=None),
    "FreeScale": FreeScale(),
}
SAVINGS: dict[str, dict[str, Any]] = {
    "text at every step": {"text": None},
    "split guidance": {"split_guidance": True},
    "feed-forward in parts": {"feed_forward_tokens": 16384},
    "dilated on phases": {"phase_convs": True},
}


def call(denoiser: Denoiser, method: Method, level: Level) -> Callable[[], torch.Tensor]:
    """Return one guided prediction of a step, patches included."""
    moment = Moment(level, STEP, make_schedule(SCHEDULER, 50), 0, denoiser.window_rows, denoiser.phase_convs)
    z = normal((1, 4, *level.latent_hw), 0, "z").to(next(denoiser.unet.parameters()).device)

    def run() -> torch.Tensor:
        with patched(denoiser.unet, method.patches(moment)):
            return method.predict(denoiser, z, moment)

    return run


def rows_at(factor: int, denoiser: Denoiser, scale: Scale, given: argparse.Namespace) -> list[Measurement]:
    """Return the measurements at one size."""
    device, rows = given.device, []
    level = make_level(scale, int(factor > 1), factor, device)
    methods = METHODS if factor > 1 else {name: METHODS[name] for name in ("UNet", "with FreeU")}
    if factor > 4:
        methods = {name: METHODS[name] for name in ("UNet", "FreeScale")}
    for name, method in methods.items():
        run = call(denoiser, method, level)
        rows.append(measure(f"{scale.base * factor} {name}", run, device, given.runs, count_flop(run)))
    for name, change in SAVINGS.items() if 1 < factor <= 4 else ():
        run = call(replace(denoiser, **change), METHODS["FreeScale"], level)
        rows.append(measure(f"{scale.base * factor} FreeScale, {name}", run, device, given.runs, rows[-1].flop))
    return rows


def formats_at(factor: int, denoiser: Denoiser, scale: Scale, given: argparse.Namespace) -> list[Measurement]:
    """Return the UNet alone with its weights in the other memory format, and compiled block by block."""
    level = make_level(scale, int(factor > 1), factor, given.device)
    run, name = call(denoiser, METHODS["FreeScale"], level), f"{scale.base * factor} FreeScale"
    denoiser.unet.to(memory_format=torch.channels_last)
    rows = [measure(f"{name}, channels last", run, given.device, given.runs)]
    denoiser.unet.to(memory_format=torch.contiguous_format)
    if given.compile:
        denoiser.unet.compile_repeated_blocks(dynamic=False)
        rows.append(measure(f"{name}, compiled", run, given.device, given.runs, warm_ups=3))
    return rows


@torch.no_grad()
def main() -> None:
    """Measure every row and report what each adds to the UNet alone."""
    asked = parser(__doc__ or "")
    asked.add_argument("--compile", action="store_true", help="also compiled, block by block (minutes)")
    given = settled(asked)
    scale = scale_of(given.device)
    denoiser = make_denoiser(scale, given.device)
    rows, rate = list[Measurement](), matmul_rate(given.device, scale.dtype)
    factors = (1, 2, 4, 8) if given.device.type == "cuda" else (1, 2, 4)
    for factor in factors:
        rows += rows_at(factor, denoiser, scale, given)
        gc.collect()
    rows += formats_at(2, denoiser, scale, given)
    seconds = {row.name: row.seconds for row in rows}
    adds = {n: s / seconds[f"{n.split()[0]} UNet"] - 1 for n, s in seconds.items() if not n.endswith(" UNet")}
    report("unet", rows, given.device, rate, kernels=attention_name(given.device, scale.dtype), adds_to_unet=adds)
    for name, share in adds.items():
        print(f"{name:<44}{share:>+8.1%} of the UNet alone")


if __name__ == "__main__":
    main()
