"""What a causal VAE takes over a video, found by running it without numbers: the first, the second and a later part.

The first latent frame is one frame and fills no cache before it, the second one is the first with several frames, and
all others cost what the third does.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from freescale.vae.causal import decoded, encoded, spans_of
from freescale.vae.codec import codec_of
from stages.planner.trace_cache import cached_trace
from stages.stage import Cost, latent_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stages.planner.configurations import Configs
    from stages.stage import Size

TRACED = 3  # latent frames that are run


@lru_cache(maxsize=64)
def causal_cost(configs: Configs, way: str, size: Size, source: Size, frames: int, cells: tuple[int, int]) -> Cost:
    """Return what it takes to decode a video of `size`, or to enlarge one of `source` to it and encode that.

    `frames` are those of the video, `cells` the pixels of a latent cell's side and the frames of a latent frame.
    """
    cell, time_cell = cells
    count = (frames - 1) // time_cell + 1
    asked = (configs, way, size, source, min(count, TRACED), cell, time_cell)
    traced, what = partial(_traced, *asked), ("causal vae", *asked)
    activations, *flops = cached_trace(traced, *what)
    return Cost(int(activations), sum(flops) + (count - len(flops)) * flops[-1])


def _traced(
    configs: Configs, way: str, size: Size, source: Size, count: int, cell: int, time_cell: int
) -> tuple[float, ...]:
    """Return bytes at the worst moment, and the floating-point operations of each of `count` latent frames."""
    from stages.planner.skeleton import skeleton_of
    from stages.planner.trace import Trace

    vae = skeleton_of(configs, "float32")
    module: Any = vae.module
    flops = list[float]()
    with Trace() as trace, torch.no_grad():
        vae.trace = trace
        try:
            trace.hold((*module.parameters(), *module.buffers()))
            before = trace.live
            if way == "decode":
                parts = _decoding(module, size, count, cell)
            else:
                parts = _encoding(module, size, source, count, time_cell)
            while True:
                now = trace.flops
                if next(parts, None) is None:
                    break
                flops.append(float(trace.flops - now))
        finally:
            vae.trace = None
    return float(trace.peak - before), *flops


def _decoding(vae: Any, size: Size, count: int, cell: int) -> Iterator[Tensor]:
    """Decode latents that are zero."""
    shape = latent_shape(size, int(vae.config["z_dim"]), cell, count)
    return decoded(vae, codec_of(vae).to_vae(torch.zeros(shape, device="meta")))


def _encoding(vae: Any, size: Size, source: Size, count: int, time_cell: int) -> Iterator[Tensor]:
    """Encode frames that are zero, enlarged from `source`."""

    def larger() -> Iterator[Tensor]:
        """Yield the frames of each latent frame."""
        for first, end in spans_of((count - 1) * time_cell + 1, time_cell):
            frames = (torch.zeros(1, 3, *source, device="meta") for _ in range(first, end))
            yield torch.stack([F.interpolate(each, size=size, mode="bicubic") for each in frames], dim=2)

    return encoded(vae, larger())
