"""What a causal VAE takes over a video, found by running it without numbers: its first three latent frames.

The first latent frame is one frame and finds no cache, the second one is the first with several frames, and all others
cost what the third does. By tiles, the largest tile is run, and counted for the others.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from freescale.vae.causal import as_patches, cache_of, decoded, encoded, spans_of
from freescale.vae.causal_tiles import (
    decoded_frames,
    decoded_middle,
    encoded_map,
    encoded_middle,
    margin_of,
    scale_of,
    tile_side,
    tiles_of,
)
from freescale.vae.codec import codec_of
from freescale.vae.plan import VaeMemoryError
from stages.errors import SpecError
from stages.planner.trace_cache import cached_trace
from stages.stage import Cost, cells_of, latent_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from stages.planner.configurations import Configs
    from stages.planner.trace import Trace
    from stages.stage import Size

TRACED = 3  # latent frames that are run


@lru_cache(maxsize=64)
def causal_cost(
    configs: Configs, way: str, size: Size, source: Size, frames: int, cells: tuple[int, int], memory: int
) -> Cost:
    """Return what it takes to decode a video of `size`, or to enlarge one of `source` to it and encode that.

    `frames` are those of the video, `cells` the pixels of a latent cell's side and the frames of a latent frame. With
    `memory` above 0 it works by tiles where the whole takes more. Raises `SpecError` where tiles do, too.
    """
    cell, time_cell = cells
    count = (frames - 1) // time_cell + 1
    asked = (configs, way, size, source, min(count, TRACED), cell, time_cell, memory)
    activations, *flops = cached_trace(partial(_traced, *asked), "causal vae", *asked)
    return Cost(int(activations), sum(flops) + (count - len(flops)) * flops[-1])


def _traced(
    configs: Configs, way: str, size: Size, source: Size, count: int, cell: int, time_cell: int, memory: int
) -> tuple[float, ...]:
    """Return bytes at the worst moment, and the floating-point operations of each of `count` latent frames."""
    from stages.planner.skeleton import skeleton_of
    from stages.planner.trace import Trace

    vae = skeleton_of(configs, "float32")
    module: Any = vae.module
    half, grid = ("decoder" if way == "decode" else "encoder"), cells_of(size, cell)
    try:
        side = tile_side(module, half, grid, memory)  # type: ignore[arg-type]
    except VaeMemoryError as error:
        raise SpecError(str(error)) from error
    frames = _larger(size, source, (count - 1) * time_cell + 1, time_cell)
    latents = torch.zeros(latent_shape(size, int(module.config["z_dim"]), cell, count), device="meta")
    with Trace() as trace, torch.no_grad():
        vae.trace = trace
        try:
            trace.hold((*module.parameters(), *module.buffers()))
            before = trace.live
            if side is not None:
                flops = _by_tiles(trace, module, way, grid, side, frames, latents)
            elif way == "decode":
                flops = _counted(trace, decoded(module, codec_of(module).to_vae(latents)))
            else:
                flops = _counted(trace, encoded(module, frames))
        finally:
            vae.trace = None
    return float(trace.peak - before), *flops


def _larger(size: Size, source: Size, frames: int, time_cell: int) -> Iterator[Tensor]:
    """Yield the frames of each latent frame, zeros enlarged from `source`."""
    for first, end in spans_of(frames, time_cell):
        small = (torch.zeros(1, 3, *source, device="meta") for _ in range(first, end))
        yield torch.stack([F.interpolate(each, size=size, mode="bicubic") for each in small], dim=2)


def _counted(trace: Trace, parts: Iterable[Tensor]) -> list[float]:
    """Return the floating-point operations that each of some parts takes."""
    found, before = [], trace.flops
    for _ in parts:
        found.append(float(trace.flops - before))
        before = trace.flops
    return found


def _by_tiles(
    trace: Trace, vae: Any, way: str, grid: Size, side: int, frames: Iterator[Tensor], latents: Tensor
) -> list[float]:
    """Return the floating-point operations of each latent frame: of the middle block, and of all tiles."""
    half: Any = "decoder" if way == "decode" else "encoder"
    tile = tuple(min(side + 2 * margin_of(vae, half), length) for length in grid)
    number, work = len(list(tiles_of(grid, side))), getattr(vae, half)
    middle, inside, count = cache_of(work), cache_of(work), latents.shape[2]
    if way == "decode":
        given = vae.post_quant_conv(codec_of(vae).to_vae(latents))
        whole = _counted(trace, (decoded_middle(work, given[:, :, i : i + 1], middle) for i in range(count)))
        maps = torch.zeros(1, work.conv_in.out_channels, 1, *tile, device="meta")
        parts = _counted(trace, (decoded_frames(work, maps, inside, i == 0) for i in range(count)))
    else:
        scale = scale_of(vae, half)
        seen = (as_patches(vae, part[..., : scale * tile[0], : scale * tile[1]]) for part in frames)
        parts = _counted(trace, (encoded_map(work, part, inside) for part in seen))
        inside.clear()
        maps = torch.zeros(1, work.norm_out.gamma.shape[0], 1, *grid, device="meta")
        whole = _counted(trace, (encoded_middle(work, maps, middle) for _ in range(count)))
    return [one + number * each for one, each in zip(whole, parts, strict=True)]
