"""FouriScale's masks and attention by the definition: one frequency, one token at a time, float64."""

from __future__ import annotations

import cmath
import itertools
import math

import torch
from torch import Tensor


def profile(n: int, frequency: int, spread: float, floor: float, is_weak: bool) -> float:
    """The mask of one axis at a signed frequency: falls from the edge of the band to the floor."""
    bin_ = frequency if frequency >= 0 else -frequency - 1
    width = math.floor((spread - 1) * n / (2 * spread)) if is_weak else max(n // 8, 1)
    if width == 0:
        return 1.0
    return min(max(1 + (1 - floor) / width * (n / 2 / spread + 1 - bin_), floor), 1.0)


def shifted_half(n: int, spread: float, floor: float, is_weak: bool) -> list[float]:
    """The released mask of an even axis as it is made: a half profile, mirrored and put before itself."""
    half = [profile(n, k, spread, floor, is_weak) for k in range(n // 2)]
    return half[::-1] + half


def frequencies(n: int) -> range:
    """Signed, lowest first: -n/2 … n/2 - 1, or -(n - 1)/2 … (n - 1)/2."""
    return range(-(n // 2), (n + 1) // 2)


def low_pass(x: Tensor, spread: float, floor: float, is_weak: bool) -> Tensor:
    """x (h, w) with every coefficient of its transform times the mask; the real part."""
    (h, w), values, output = x.shape, x.tolist(), torch.zeros_like(x)
    places = list(itertools.product(range(h), range(w)))
    for f, g in itertools.product(frequencies(h), frequencies(w)):
        weight = profile(h, f, spread, floor, is_weak) * profile(w, g, spread, floor, is_weak)
        turn = {p: cmath.exp(2j * math.pi * (f * p[0] / h + g * p[1] / w)) for p in places}
        coefficient = sum(values[m][n] * turn[m, n].conjugate() for m, n in places) * weight / (h * w)
        for m, n in places:
            output[m, n] += (coefficient * turn[m, n]).real
    return output


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(N, C) each -> (N, C): every token of every head by itself."""
    output, size = torch.zeros_like(value), query.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(query)):
            logits = [float(query[i, part] @ key[j, part]) / math.sqrt(size) for j in range(len(key))]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for j, weight in enumerate(weights):
                output[i, part] += weight / sum(weights) * value[j, part]
    return output
