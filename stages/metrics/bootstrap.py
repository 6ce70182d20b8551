"""Intervals by resampling pictures with replacement, from a seed.

A picture's crops move together, since they are no independent draws. The same seed and counts give the same resamples,
so two methods measured on the same prompts are resampled alike. Repeats in a resample shift a Fréchet distance, a
kernel distance and an inception score, so for these the spread of the resamples is put around the value of the whole
set. A mean is not shifted: its percentiles are taken as they are, and a share stays between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freescale.forward_process import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Where the value lies in 95 of 100 repetitions, and the standard deviation of the resamples."""

    low: float
    high: float
    std: float


def resample(count: int, seed: int, side: str, draw: int) -> Tensor:
    """Return (count) numbers of pictures, drawn with replacement."""
    return torch.randint(0, count, (count,), generator=generator(seed, "bootstrap", side, draw))


def interval(
    value: float,
    statistic: Callable[..., float],
    counts: Sequence[int],
    draws: int = 200,
    seed: int = 0,
    shifted: bool = True,
) -> Interval:
    """Return the interval of `value`, the statistic of all pictures.

    `statistic` takes one tensor of picture numbers for each of `counts` (one set, or two that are compared). `shifted`:
    repeats shift it, so that the resamples are moved to `value`.
    """
    if draws < 2 or min(counts) < 2:
        raise ValueError(f"an interval needs at least 2 draws of at least 2 pictures, not {draws} of {min(counts)}")
    found = torch.tensor(
        [statistic(*(resample(n, seed, f"side {i}", draw) for i, n in enumerate(counts))) for draw in range(draws)],
        dtype=torch.float64,
    )
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    shift = value - found.mean() if shifted else 0.0
    low, high = (torch.quantile(found, tails) + shift).tolist()
    return Interval(low, high, float(found.std()))
