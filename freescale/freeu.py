"""FreeU (arXiv:2309.11497): in the up-blocks, stronger backbones and skips with weaker low frequencies.

Layers are chosen by the channels of their backbone input, as the releases of FreeScale, ScaleCrafter and
FouriScale do: the widest level takes (b1, s1), the next (b2, s2). (`enable_freeu` of diffusers chooses by
block instead, which leaves out the first layer of SDXL's last up-block and scales another by the wrong pair.)
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from freescale.portions import each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from freescale.unet_patches import Patch


PART = 2**27
"""Most numbers of a skip that are worked on at once: 0.5 GiB in float32, a fifth of SDXL's largest at 8192 x 8192."""


def freeu_patches(scales: tuple[float, float, float, float] | None) -> Iterator[Patch]:
    """Yield FreeU with the scales (b1, b2, s1, s2), or nothing for None. It goes with any method (`Method.freeu`)."""
    if scales is not None:
        yield freeu(*scales)


def freeu(b1: float, b2: float, s1: float, s2: float) -> Patch:
    """Scale half of the backbone's channels by b and the lowest frequencies of the skip by s.

    The pair (b1, s1) is for the widest level, (b2, s2) for the next.
    """

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Hook every layer that FreeU changes."""
        with ExitStack() as stack:
            for resnet, channels, is_widest in touched_resnets(unet):
                b, s = (b1, s1) if is_widest else (b2, s2)
                stack.callback(resnet.register_forward_pre_hook(_rescale(channels, b, s)).remove)
            yield

    return patch


def touched_resnets(unet: Any) -> list[tuple[nn.Module, int, bool]]:
    """Return (resnet, backbone channels, whether they are the widest) of every layer that FreeU changes."""
    widths = list(unet.config.block_out_channels)[::-1]
    distinct = list(dict.fromkeys(widths))[:2]
    touched = []
    for index, block in enumerate(unet.up_blocks):
        for position, resnet in enumerate(block.resnets):
            channels = widths[max(index - 1, 0)] if position == 0 else widths[index]
            if channels in distinct:
                touched.append((resnet, channels, channels == distinct[0]))
    return touched


def _rescale(channels: int, b: float, s: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Rescale the input (B, C, h, w) of a resnet: the backbone's channels, then those of the skip."""
        # The block made this tensor by joining the two, for this layer alone: it is written to.
        joined = args[0]
        joined[:, : channels // 2].mul_(b)
        skip = joined[:, channels:]
        parts = torch.split(skip, max(1, PART // skip[:, :1].numel()), dim=1)
        for part in each(parts, lambda part: part.shape[1]):
            part.copy_(scale_lowest(part, s))
        return (joined, *args[1:])

    return hook


def scale_lowest(y: Tensor, factor: float) -> Tensor:
    """Return y (B, C, h, w) with its Fourier coefficients at frequencies {-1, 0} x {-1, 0} scaled, real part.

    These four coefficients are a term of low rank, y + (factor - 1) P(y): no transform is needed. P has the
    kernel [(1 + cos u)(1 + cos v) - sin u sin v] / (h w), with u = 2 pi (m - m') / h, v = 2 pi (n - n') / w.
    Both products act on the space spanned by 1, cos and sin of each axis, hence on 3 x 3 coefficients.
    """
    h, w = y.shape[-2:]
    if factor == 1.0:
        return y
    dtype = torch.promote_types(y.dtype, torch.float32)
    rows, columns = (_lowest_waves(n, dtype, y.device) for n in (h, w))
    coefficients = rows.mT @ y.to(dtype) @ columns
    quarter_turn = torch.tensor([[0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=dtype, device=y.device)
    coefficients = coefficients - quarter_turn @ coefficients @ quarter_turn.mT
    lowest = rows @ coefficients @ columns.mT / (h * w)
    return (y + (factor - 1.0) * lowest).to(y.dtype)


def _lowest_waves(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 1, cos and sin of one turn over n points, (n, 3); a single point has the constant only."""
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    has_turn = float(n > 1)
    waves = [torch.ones_like(angle), angle.cos() * has_turn, angle.sin() * has_turn]
    return torch.stack(waves, dim=1).to(device, dtype)
