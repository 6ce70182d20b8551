"""Detail control (FreeScale, "Flexible Control for Detail Level"): how much a level may differ from its reference.

Before each step of a level above the first, the latents are interpolated towards the reference, noised to the same
sigma, with weight c = kappa(t) ** alpha. kappa falls from 1 at the noisiest timestep to 0, so with a larger exponent
`alpha` the weight falls sooner, which leaves more room for new detail. The exponent may differ from cell to cell.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def detail_weight(timestep: float, num_train_timesteps: int = 1000) -> float:
    """Return kappa(t) = (1 + cos(pi (T - t) / T)) / 2: 1 at t = T, 0 at t = 0."""
    return 0.5 * (1.0 + math.cos(math.pi * (num_train_timesteps - timestep) / num_train_timesteps))


def reference_weight(kappa: float, exponent: float | Tensor) -> Tensor:
    """Return c = kappa ** exponent, float32 on the CPU: (1, 1, 1, 1) for a scalar, else the shape of the map.

    Both broadcast over (B, C, h, w) and (B, C, F, h, w), and a constant map gives the bits of its scalar. A map without
    numbers (on the meta device, where a plan traces a step) gives a weight without numbers.
    """
    device = "meta" if isinstance(exponent, torch.Tensor) and exponent.is_meta else "cpu"
    power = torch.as_tensor(exponent, dtype=torch.float64, device=device)
    weight = torch.pow(torch.tensor(kappa, dtype=torch.float64, device=device), power).to(torch.float32)
    return weight if weight.ndim else weight.view(1, 1, 1, 1)


def region_map(masks: Sequence[Tensor], scales: Sequence[float], rest: float, latent_hw: tuple[int, int]) -> Tensor:
    """Return the exponent map (1, 1, h, w), float32: sum_k m_k a_k + (1 - sum_k m_k) a_rest.

    `masks` are (H, W) in [0, 1], of any size; they are averaged over each latent cell. Where regions overlap
    and the masks sum to more than 1 they are divided by that sum.
    Raises `ValueError` for a mask of another shape or range, and for another number of scales than masks.
    """
    if len(masks) != len(scales):
        raise ValueError(f"scales has {len(scales)} values, allowed: one for each of the {len(masks)} masks")
    if not masks:
        return torch.full((1, 1, *latent_hw), rest, dtype=torch.float32)
    resized = torch.stack([_to_cells(mask, latent_hw) for mask in masks])
    resized = resized / resized.sum(0).clamp(min=1.0)
    exponents = torch.tensor(scales, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return (resized * exponents).sum(0) + (1.0 - resized.sum(0)).clamp(min=0.0) * rest


def _to_cells(mask: Tensor, latent_hw: tuple[int, int]) -> Tensor:
    """Resize a mask (H, W) to (1, 1, h, w): the mean over each cell, or bilinear if the mask is coarser."""
    if mask.ndim != 2 or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"mask of shape {tuple(mask.shape)}, allowed: (H, W) with values in [0, 1]")
    image = mask.to("cpu", torch.float32)[None, None]
    if mask.shape[0] >= latent_hw[0] and mask.shape[1] >= latent_hw[1]:
        return F.interpolate(image, size=latent_hw, mode="area")
    return F.interpolate(image, size=latent_hw, mode="bilinear", align_corners=False).clamp(0.0, 1.0)
