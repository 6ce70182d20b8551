"""What does scale fusion cost in one self-attention, beside plain attention and beside the release's order?

    python -m benchmarks.attention

One layer for a picture of 2, 4 and 8 times the training side. On a GPU SDXL's at its second level: 640 channels, 128 to
512 tokens a side, bfloat16, both rows of the guidance. On a CPU half the width and 64 tokens a side throughout, in
windows of 32, 16 and 8, one row, float32: ratios are what counts there. Windows are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import Measurement, count_flop, matmul_rate, parser, ratio, report, settled, side_by_side
from benchmarks.released import released_fusion
from freescale.attention import attention_name, prefer_backends
from freescale.forward_process import generator, normal
from freescale.frequency import gaussian_taps
from freescale.scale_fusion import Fusion, fuse_scales

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A layer and a batch of grids for it."""

    channels: int
    heads: int
    sides: dict[int, int]  # picture's side over the training side: tokens a side
    batch: int
    dtype: torch.dtype


ON_GPU = Case(640, 10, {2: 128, 4: 256, 8: 512}, 2, torch.bfloat16)
ON_CPU = Case(320, 5, {2: 64, 4: 64, 8: 64}, 1, torch.float32)


def layer(case: Case, device: torch.device) -> Any:
    """Return a self-attention with random weights."""
    from diffusers.models.attention_processor import Attention

    attn = Attention(case.channels, heads=case.heads, dim_head=case.channels // case.heads).eval()
    for index, parameter in enumerate(attn.parameters()):
        parameter.data = normal(parameter.shape, index, "weights") * case.channels**-0.5
    return attn.requires_grad_(False).to(device, case.dtype)


def variants(attn: Any, x: Tensor, case: Case, factor: int) -> dict[str, Callable[[], Tensor]]:
    """Return what is compared, by name."""
    grid = (case.sides[factor],) * 2
    taps = gaussian_taps(2 * factor - 1)
    fusions = {
        name: Fusion((factor, factor), taps, phases=phases, jitter=lambda name, grid: generator(0, name))
        for name, phases in (("full", (1, 1)), ("fast", (factor, factor)))
    }
    windows = fusions["full"].windows("layer", grid)

    def ours(name: str) -> Callable[[], Tensor]:
        return lambda: fuse_scales(attn, x, fusions[name].windows("layer", grid), fusions[name])

    def released(name: str) -> Callable[[], Tensor]:
        return lambda: released_fusion(attn, x, windows, 2 * factor - 1, fusions[name].phases)

    return {
        "plain": lambda: attn(x),
        "full": ours("full"),
        "fast": ours("fast"),
        "released full": released("full"),
        "released fast": released("fast"),
    }


@torch.no_grad()
def main() -> None:
    """Measure, check that both orders agree, and report the ratios."""
    asked = parser(__doc__ or "")
    asked.add_argument("--factors", type=int, nargs="+", choices=(2, 4, 8), default=[2, 4, 8], help="sizes to measure")
    given = settled(asked)
    device = given.device
    case = ON_GPU if device.type == "cuda" else ON_CPU
    attn, rows, ratios = layer(case, device), list[Measurement](), {}
    rate = matmul_rate(device, case.dtype)
    with prefer_backends(device, case.dtype):
        for factor in given.factors:
            side = case.sides[factor]
            x = normal((case.batch, side**2, case.channels), 0).to(device, case.dtype)
            made = variants(attn, x, case, factor)
            timed = side_by_side(made, device, given.runs, {name: count_flop(run) for name, run in made.items()})
            rows += [replace(row, name=f"{factor}x {name}") for name, row in timed.items()]
            ratios[f"{factor}x"] = {
                "full, times as fast as released": ratio(timed["released full"], timed["full"]),
                "fast, times as fast as released": ratio(timed["released fast"], timed["fast"]),
                "fast, times as fast as released full": ratio(timed["released full"], timed["fast"]),
                "full over plain": ratio(timed["full"], timed["plain"]),
                "fast over plain": ratio(timed["fast"], timed["plain"]),
                "largest difference": max(_apart(made, name) for name in ("full", "fast")),
            }
    report("attention", rows, device, rate, kernels=attention_name(device, case.dtype), ratios=ratios)
    for scale, of in ratios.items():
        print(scale, ", ".join(f"{name} {value:.3g}" for name, value in of.items()))


def _apart(made: dict[str, Callable[[], Tensor]], name: str) -> float:
    """Return the largest difference between the two orders, over the largest output."""
    ours, theirs = made[name]().float(), made[f"released {name}"]().float()
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    main()
