"""What does a guided UNet call cost at each size, and what does each part of the method, each saving, add or take?

    python -m benchmarks.unet [--compile]

Rows: the UNet alone; with FreeU; with scale fusion, full and fast; with dilation, by the device's own kernels and on
phases; then all of FreeScale, with the savings of memory one by one. On a GPU SDXL at 1024 to 4096 pixels a side (8192:
only what the method needs); on a CPU a small one at 256 to 1024 (`benchmarks.sdxl`).
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import Measurement, count_flop, matmul_rate, parser, ratio, report, settled, side_by_side
from benchmarks.sdxl import SCHEDULER, make_denoiser, make_level, scale_of
from freescale.attention import attention_name
from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.freeu import freeu_patches
from freescale.methods import Direct, FreeScale, Method
from freescale.moment import Moment
from freescale.schedule import make_schedule
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Callable

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
    "prompt projected at every step": {"text_cache": None},
    "split guidance": {"compute": Compute(split_guidance=True)},
    "feed-forward in parts": {"compute": Compute(feed_forward_tokens=16384)},
    "dilated on phases": {"compute": Compute(phase_convs=True)},
}


def call(denoiser: Denoiser, method: Method, level: Level) -> Callable[[], torch.Tensor]:
    """Return one guided prediction of a step, patches included."""
    moment = Moment(level, STEP, make_schedule(SCHEDULER, 50), 0, denoiser.compute)
    z = normal((1, 4, *level.latent_hw), 0, "z").to(next(denoiser.network.parameters()).device)

    def run() -> torch.Tensor:
        with patched(denoiser.network, (*freeu_patches(method.freeu), *method.patches(moment))):
            return method.predict(denoiser, z, moment)

    return run


def compared_at(factor: int, denoiser: Denoiser, level: Level) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what is compared at one size, by name."""
    names = {1: ("UNet", "with FreeU"), 8: ("UNet", "FreeScale")}.get(factor, tuple(METHODS))
    made = {name: call(denoiser, METHODS[name], level) for name in names}
    for name, change in SAVINGS.items() if 1 < factor <= 4 else ():
        made[f"FreeScale, {name}"] = call(replace(denoiser, **change), METHODS["FreeScale"], level)
    return made


def in_other_forms(denoiser: Denoiser, level: Level, compiled: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """Return FreeScale on copies of the UNet: with weights in the other memory format, and compiled block by block."""
    unets: dict[str, Any] = {"channels last": copy.deepcopy(denoiser.network).to(memory_format=torch.channels_last)}
    if compiled:
        unets["compiled"] = copy.deepcopy(denoiser.network)
        unets["compiled"].compile_repeated_blocks(dynamic=False)
    method = METHODS["FreeScale"]
    return {f"FreeScale, {name}": call(replace(denoiser, network=unet), method, level) for name, unet in unets.items()}


@torch.no_grad()
def main() -> None:
    """Measure every row and report what each adds to the UNet alone."""
    asked = parser(__doc__ or "")
    asked.add_argument("--compile", action="store_true", help="also compiled, block by block (minutes)")
    given = settled(asked)
    scale, device = scale_of(given.device), given.device
    denoiser = make_denoiser(scale, device)
    rows, adds, rate = list[Measurement](), dict[str, float](), matmul_rate(device, scale.dtype)
    for factor in (1, 2, 4, 8) if device.type == "cuda" else (1, 2, 4):
        level = make_level(scale, int(factor > 1), factor, device)
        made = compared_at(factor, denoiser, level)
        flop = {name: count_flop(run) for name, run in made.items()}
        if factor == 2:
            made |= in_other_forms(denoiser, level, given.compile)
        timed = side_by_side(made, device, given.runs, flop, warm_ups=3 if given.compile else 1)
        for name, row in timed.items():
            rows.append(replace(row, name=f"{scale.base * factor} {name}"))
            adds[rows[-1].name] = ratio(row, timed["UNet"]) - 1
        del made
        gc.collect()
    report("unet", rows, device, rate, kernels=attention_name(device, scale.dtype), adds_to_unet=adds)
    for name, share in adds.items():
        if not name.endswith(" UNet"):
            print(f"{name:<44}{share:>+8.1%} of the UNet alone")


if __name__ == "__main__":
    main()
