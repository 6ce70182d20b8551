"""Noise: where it comes from and how it is added.

Every random number has a purpose, and its stream is a pure function of (seed, purpose). Nothing reads or
moves a global generator, so a value can be drawn again at any time, in any order, by any worker. Streams are
drawn on the CPU in float32 and moved afterwards, so the device does not change them.

Latents of a UNet live in variance-exploding (VE) coordinates throughout: z = x0 + sigma * n. Those of a flow model are
x = (1 - sigma) * x0 + sigma * n (`Schedule.noised` knows which).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose, e.g. `generator(7, "jitter", level, step, module_name)`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(shape: Sequence[int], seed: int, *purpose: str | int) -> Tensor:
    """Return standard normal noise of `shape`: float32, on the CPU, from the stream of `purpose`."""
    return torch.randn(tuple(shape), generator=generator(seed, *purpose), dtype=torch.float32)


def renoise(latents: Tensor, noise: Tensor, sigma: float, signal: float = 1.0) -> Tensor:
    """Return clean `latents` noised to `sigma`: signal * x0 + sigma * n (VE: signal 1), with their device and dtype."""
    return (sigma * noise.to(latents)).add_(latents, alpha=signal)
