"""Mean and covariance of rows that arrive in batches, on any number of workers, in float64.

The update keeps the scatter about the running mean, never a sum of squares: on features of mean 1000 and spread 0.01
a sum of squares in float32 is wrong in its first digit. States merge by the same formula (Chan, Golub and LeVeque,
1983), so a reduction over workers gives what one pass over all rows gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class GaussianState:
    """Count, mean (d) and scatter (d, d) of the rows seen so far."""

    dim: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.dim, dtype=torch.float64)
        self.scatter = torch.zeros(self.dim, self.dim, dtype=torch.float64)

    def update(self, rows: Tensor) -> GaussianState:
        """Take in `rows` (n, d), any float dtype. Raises `ValueError` for another width or values not finite."""
        batch = GaussianState(self.dim)
        values = checked_rows(rows, self.dim)
        if len(values):
            batch.count, batch.mean = len(values), values.mean(dim=0)
            centred = values - batch.mean
            batch.scatter = centred.T @ centred
        return self.merge(batch)

    def merge(self, other: GaussianState) -> GaussianState:
        """Take in what `other` has seen; `other` stays as it is."""
        if other.dim != self.dim:
            raise ValueError(f"states of {self.dim} and {other.dim} dimensions cannot be merged")
        total = self.count + other.count
        if other.count:
            delta = other.mean - self.mean
            self.scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / total)
            self.mean = self.mean + delta * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """(d, d), unbiased. Raises `ValueError` below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, not {self.count}")
        return self.scatter / (self.count - 1)


def checked_rows(rows: Tensor, dim: int | None = None) -> Tensor:
    """`rows` (n, d) as float64 on the CPU. Raises `ValueError` for another shape or values that are not finite."""
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim):
        raise ValueError(f"rows have shape {tuple(rows.shape)}, not (n, {dim or 'd'})")
    values = rows.detach().to("cpu", torch.float64)
    if not values.isfinite().all():
        raise ValueError("rows hold values that are not finite")
    return values
