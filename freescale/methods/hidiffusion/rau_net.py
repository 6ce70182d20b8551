"""RAU-Net (HiDiffusion, arXiv:2311.17528, "Resolution-Aware U-Net"): deep blocks run at the size they were trained at.

Two changes make the deep grids smaller, and each restores the size further on:

* RAD: the downsampling that follows the first attentions skips further. Released as stride 4, padding 2 and dilation 2
  in place of 2, 1 and 1, which is the layer itself on every second cell of its input, and is done so here. The
  matching upsampler (RAU) enlarges to the size of its skip, by nearest neighbours.
* Pooling: the first attention of `down_blocks.1` hands on averages of its output, also as its skip; after the second
  attention of the mirrored up-block the grid is enlarged again, by bicubic interpolation.

Every upsampler is told the size that its skip has, so no side needs to divide by anything.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from freescale.unet_patches import Patch
    from freescale.windows import Grid

Layout = Literal["sdxl", "sd"]


def layout_of(unet: Any) -> Layout:
    """Return `sd` for a UNet that attends at full size (Stable Diffusion 1.5, 2.1), `sdxl` from half of it on."""
    return "sd" if _attentions(unet.down_blocks[0]) else "sdxl"


def first_attended(unet: Any) -> int:
    """Return the number of the down-block with the largest grid that has attention."""
    return 0 if layout_of(unet) == "sd" else 1


def check_blocks(unet: Any) -> None:
    """Raise `ValueError` for a UNet without the blocks that the layouts of the release have in common."""
    downs, ups = list(unet.down_blocks), list(unet.up_blocks)
    if (levels := len(downs)) < 2 + first_attended(unet):
        raise ValueError(f"the UNet has {levels} levels, allowed: one or more below the first with attention")
    for name, block, least in (("down_blocks.1", downs[1], 1), (f"up_blocks.{levels - 2}", ups[levels - 2], 2)):
        if (count := len(_attentions(block))) < least:
            raise ValueError(f"{name} of the UNet has {count} attentions, allowed: {least} or more")


def rau_net(rad: int = 1, pool: int = 1) -> Patch:
    """Divide the grids by `rad` from the first attended downsampler on, and by `pool` in `down_blocks.1` and below.

    With a factor of 1 the layers are not changed. Raises `ValueError` for a factor below 1.
    """
    if min(rad, pool) < 1:
        raise ValueError(f"reductions are {rad} and {pool}, allowed: 1 or more")

    @contextmanager
    def patch(unet: Any) -> Iterator[None]:
        """Hook the downsamplers, the upsamplers and, for pooling, two attentions."""
        with ExitStack() as stack:
            if max(rad, pool) > 1:
                for hook in _keep_sizes(unet):
                    stack.callback(hook.remove)
            if rad > 1:
                downsampler = unet.down_blocks[first_attended(unet)].downsamplers[0]
                stack.callback(downsampler.register_forward_pre_hook(_every(rad)).remove)
            if pool > 1:
                for hook in _pool(unet, pool):
                    stack.callback(hook.remove)
            yield

    return patch


def _attentions(block: Any) -> list[nn.Module]:
    return list(getattr(block, "attentions", None) or ())


def _keep_sizes(unet: Any) -> Iterator[Any]:
    """Record what enters each downsampler, and make the mirrored upsampler return to it."""
    sizes: dict[int, Grid] = {}

    def record(depth: int) -> Callable[..., None]:
        """Return the hook of the downsampler of one level."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            """Write down the size of its input."""
            sizes[depth] = (args[0].shape[-2], args[0].shape[-1])

        return hook

    def enlarge(depth: int) -> Callable[..., tuple[Any, ...]]:
        """Return the hook of the upsampler that mirrors it."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            """Tell it the size to enlarge to."""
            return args[0], sizes[depth], *args[2:]

        return hook

    last = len(unet.down_blocks) - 1
    for depth in range(last):
        yield unet.down_blocks[depth].downsamplers[0].register_forward_pre_hook(record(depth))
        yield unet.up_blocks[last - 1 - depth].upsamplers[0].register_forward_pre_hook(enlarge(depth))


def _every(step: int) -> Callable[..., tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take every `step`-th cell of the input."""
        return args[0][..., ::step, ::step], *args[1:]

    return hook


def _pool(unet: Any, factor: int) -> Iterator[Any]:
    """Average after the first attention of `down_blocks.1`; enlarge after the second of its mirror image."""
    sizes: list[Grid] = []

    def shrink(_: nn.Module, args: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        """Average the output, and write down its size."""
        sizes[:] = [(output[0].shape[-2], output[0].shape[-1])]
        return F.avg_pool2d(output[0], factor, ceil_mode=True), *output[1:]

    def enlarge(_: nn.Module, args: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        """Bring the output back to that size."""
        larger = F.interpolate(output[0], size=sizes[0], mode="bicubic", align_corners=False)
        return larger, *output[1:]

    yield unet.down_blocks[1].attentions[0].register_forward_hook(shrink)
    yield unet.up_blocks[len(unet.up_blocks) - 2].attentions[1].register_forward_hook(enlarge)
