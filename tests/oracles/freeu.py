"""FreeU's skip filter with explicit sums over pixels, float64."""

from __future__ import annotations

import cmath
import itertools
import math

import torch
from torch import Tensor


def scale_lowest(y: Tensor, factor: float) -> Tensor:
    """y (h, w) with the Fourier coefficients at (f, k) in {-1, 0}^2 times `factor`; real part."""
    h, w = y.shape
    values, output = y.tolist(), torch.zeros_like(y)
    spectrum = {
        (f, k): sum(
            values[m][n] * cmath.exp(-2j * math.pi * (f * m / h + k * n / w))
            for m, n in itertools.product(range(h), range(w))
        )
        for f, k in itertools.product((-1, 0), (-1, 0))
    }
    for m, n in itertools.product(range(h), range(w)):
        lowest = sum(x * cmath.exp(2j * math.pi * (f * m / h + k * n / w)) for (f, k), x in spectrum.items())
        output[m, n] = values[m][n] + (factor - 1) * (lowest / (h * w)).real
    return output
