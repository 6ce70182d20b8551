"""Dilated convolutions on low-passed features, and attention maps shared by rows (FouriScale, arXiv:2403.12963).

Dilation keeps the structure of the training size and aliases what is above its frequencies, so those are filtered out
first (Structural Consistency via Dilated Convolution, Scale Consistency via Low-pass Filtering). The batch may end in
weak rows: filtered and dilated less, they keep detail, and take their structure from the attention of the rows
before them (FouriScale Guidance).
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from freescale.frequency import fourier_filter, low_pass_mask
from freescale.unet_patches import call_convs, dilated, spatial_self_attentions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from freescale.unet_patches import Patch


@dataclass(frozen=True)
class FourierDilation:
    """What one step does at every listed convolution. Called, it computes that convolution."""

    dilation: float  # 1 or more; filters take it as it is, convolutions rounded up
    weak_dilation: float  # of the convolutions of the weak rows
    floor: float  # what the filters leave of the highest frequencies, on each axis
    canvas: tuple[float, float]  # height and width, over those of the features, at which filters are applied
    weak_rows: int = 0  # the last rows of the batch

    def __call__(self, conv: nn.Module, x: Tensor, *, is_filtered: bool = True) -> Tensor:
        """Return the output (B, C, h, w) of the convolution."""
        count = x.shape[0] - self.weak_rows
        branches = ((x[:count], False, self.dilation), (x[count:], True, self.weak_dilation))
        outputs = []
        for rows, is_weak, dilation in branches:
            if rows.shape[0]:
                rows = self.low_pass(conv, rows, is_weak) if is_filtered else rows
                factor = math.ceil(dilation - 1e-9)
                with dilated(conv, (factor, factor)):
                    outputs.append(conv(rows))
        return torch.cat(outputs)

    def low_pass(self, conv: Any, x: Tensor, is_weak: bool) -> Tensor:
        """Return x (B, C, h, w) filtered on the canvas, zeros below and to its right, and cut out again."""
        h, w = x.shape[-2:]
        size = (math.ceil(h * self.canvas[0] - 1e-6), math.ceil(w * self.canvas[1] - 1e-6))
        spread = self.dilation / getattr(conv, "base_layer", conv).stride[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        mask = low_pass_mask(size, spread, self.floor, is_weak, dtype, x.device)
        return fourier_filter(F.pad(x, (0, size[1] - w, 0, size[0] - h)), mask)[..., :h, :w]


def fourier_dilate(names: Sequence[str], step: FourierDilation) -> Patch:
    """Filter and dilate the named convolutions. Those of upsamplers are dilated only, as released."""

    def call_for(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
        """Return the call of one convolution."""
        is_filtered = ".upsamplers." not in name
        return lambda conv, x: step(conv, x, is_filtered=is_filtered)

    return call_convs({name: call_for(name) for name in names})


def share_attention_maps(rows: int) -> Patch:
    """Give the last `rows` rows of every spatial self-attention the attention maps of the `rows` before them.

    Their queries and keys are those of the rows before, projected once; their values are their own. Raises `ValueError`
    where the projections are fused.
    """

    def leave_out(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Project all rows but the last ones."""
        return (args[0][:-rows], *args[1:])

    def repeat(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the projections of the rows before in their stead."""
        return torch.cat([output, output[-rows:]])

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Hook the projections of queries and keys."""
        with ExitStack() as stack:
            for name, attention in spatial_self_attentions(unet):
                if getattr(attention, "fused_projections", False):
                    raise ValueError(f"{name} has fused projections, allowed: separate ones (unfuse_qkv_projections)")
                for projection in (attention.to_q, attention.to_k):
                    stack.callback(projection.register_forward_pre_hook(leave_out).remove)
                    stack.callback(projection.register_forward_hook(repeat).remove)
            yield

    return patch
