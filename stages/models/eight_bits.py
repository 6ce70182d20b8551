"""Weights that are stored in 8 bits and computed with in 16: half of the memory of a UNet, and another picture.

Weights of linear layers and convolutions are kept as `float8_e4m3fn`; everything else is `bfloat16`, and so is what
code reads as the `weight` of a layer. What is written there, such as the kernel of a dilated convolution, is stored in
8 bits as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from freescale.backbones.base import stays_in_float32

STORED = torch.float8_e4m3fn
COMPUTED = torch.bfloat16
LARGEST = torch.finfo(STORED).max


class _Stored(nn.Module):
    """Between what is stored and what is read."""

    def forward(self, stored: Tensor) -> Tensor:
        """Return a weight in the dtype that is computed with."""
        return stored.to(COMPUTED)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return a weight as it is stored: rounded, and no larger than the largest number that 8 bits have."""
        return weight.float().clamp(-LARGEST, LARGEST).to(STORED)


def computed(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a network computes in whose weights are of `dtype`."""
    return COMPUTED if dtype == STORED else dtype


def stored_in_8_bits(network: nn.Module) -> Any:
    """Return a network of the dtype `COMPUTED` with its matrices and kernels stored in 8 bits.

    Parts that its class keeps in float32 stay so.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and not stays_in_float32(network, name):
            stored = _Stored()
            module.weight = nn.Parameter(stored.right_inverse(module.weight.data), requires_grad=False)
            parametrize.register_parametrization(module, "weight", stored, unsafe=True)
    return network
