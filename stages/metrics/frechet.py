"""Fréchet distance of two Gaussians: |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½ (arXiv 1706.08500, section 3).

Two exact forms of the last term. With covariances: the square roots of the eigenvalues of R S2 R, R = S1^½. With fewer
rows than dimensions: the nuclear norm of Xc Ycᵀ, which needs no covariance. Neither wants `eps * I` added, which would
change the value. The distance of two finite samples of one distribution is far above zero and falls with their number:
compare only at equal counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from stages.metrics.statistics import GaussianState, checked_rows

if TYPE_CHECKING:
    from torch import Tensor


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the distance of the Gaussians fitted to rows `x` (n, d) and `y` (m, d), by whichever form is cheaper."""
    x = checked_rows(x)
    y = checked_rows(y, x.shape[1])
    if max(len(x), len(y)) < x.shape[1]:
        return frechet_of_rows(x, y)
    states = (GaussianState(x.shape[1]).update(rows) for rows in (x, y))
    return frechet_of_states(*states)


def frechet_of_states(a: GaussianState, b: GaussianState) -> float:
    """Return the distance of two fitted Gaussians."""
    return frechet_of_moments(a.mean, a.covariance, b.mean, b.covariance)


def frechet_of_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return the distance of two Gaussians with means (d) and covariances (d, d)."""
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_b.double() @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (mean_a.double() - mean_b.double()).square().sum()
    return float(apart + cov_a.double().trace() + cov_b.double().trace() - 2 * cross)


def frechet_of_rows(x: Tensor, y: Tensor) -> float:
    """The distance of the Gaussians fitted to rows `x` (n, d) and `y` (m, d), by the nuclear norm: cost n m d."""
    x = checked_rows(x)
    y = checked_rows(y, x.shape[1])
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 rows a side, not {len(x)} and {len(y)}")
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    cross = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt((len(x) - 1) * (len(y) - 1))
    traces = x.square().sum() / (len(x) - 1) + y.square().sum() / (len(y) - 1)
    return float((mean_x - mean_y).square().sum() + traces - 2 * cross)
