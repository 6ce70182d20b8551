"""Kernel distance (KID, arXiv 1801.01401, section 4): unbiased MMD² with the kernel (x·y / d + 1)³, in float64.

Its expectation does not depend on the number of rows, unlike the Fréchet distance's. The unbiased form of a set with
itself is negative; the biased form is zero. `KernelSums` keeps the sums of the kernel by picture, so that every
resampling of pictures costs a product of small matrices and all crops of a picture move together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freescale.forward_process import generator
from stages.metrics.statistics import checked_rows

ROWS = 2048  # of the kernel matrix at a time: 10 k x 2048 float64 are 160 MB


@dataclass(frozen=True)
class KernelDistance:
    """`value` over `subsets` subsets, `std` their population deviation; None where one evaluation saw all rows."""

    value: float
    std: float | None
    subsets: int


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (n, m) values of the cubic kernel for rows `x` (n, d) and `y` (m, d)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: Tensor, y: Tensor, *, biased: bool = False) -> float:
    """Squared maximum mean discrepancy of rows `x` (n, d) and `y` (m, d); unbiased unless asked otherwise."""
    x = checked_rows(x)
    y = checked_rows(y, x.shape[1])
    if min(len(x), len(y)) < 2:
        raise ValueError(f"an unbiased kernel distance needs at least 2 rows a side, not {len(x)} and {len(y)}")
    within = 0.0
    for rows in (x, y):
        values, n = kernel(rows, rows), len(rows)
        total = values.sum() if biased else values.sum() - values.trace()
        within += float(total) / (n * n if biased else n * (n - 1))
    return within - 2 * float(kernel(x, y).mean())


def kernel_distance(x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> KernelDistance:
    """KID of rows `x` (n, d) and `y` (m, d): the mean over `subsets` draws of `size` rows without replacement.

    Where `size` reaches both sets, one evaluation on all rows says the same with less variance, and is given.
    """
    if max(len(x), len(y)) <= size:
        return KernelDistance(mmd2(x, y), None, 1)
    values = []
    for index in range(subsets):
        g = generator(seed, "kid subset", index)
        n = min(size, len(x), len(y))
        pair = [rows[torch.randperm(len(rows), generator=g)[:n]] for rows in (x, y)]
        values.append(mmd2(*pair))
    drawn = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(drawn.mean()), float(drawn.std(correction=0)), subsets)


@dataclass(frozen=True)
class KernelSums:
    """Sums of the kernel over the rows of each pair of pictures: `x` (a, a), `y` (b, b), `xy` (a, b).

    `x_self` (a) and `y_self` (b) are the sums of k(row, row), `x_rows` and `y_rows` the rows of each picture.
    """

    x: Tensor
    y: Tensor
    xy: Tensor
    x_self: Tensor
    y_self: Tensor
    x_rows: Tensor
    y_rows: Tensor

    @classmethod
    def of(cls, x: Tensor, x_owner: Tensor, y: Tensor, y_owner: Tensor) -> KernelSums:
        """Of rows `x` (n, d) and `y` (m, d) whose pictures are numbered from 0 in `x_owner` (n) and `y_owner` (m)."""
        x = checked_rows(x)
        y = checked_rows(y, x.shape[1])
        own = [_self_sums(x, x_owner), _self_sums(y, y_owner)]
        rows = [torch.bincount(owner).double() for owner in (x_owner, y_owner)]
        return cls(
            _pair_sums(x, x_owner, x, x_owner), _pair_sums(y, y_owner, y, y_owner), _pair_sums(x, x_owner, y, y_owner),
            *own, *rows,
        )  # fmt: skip

    def mmd2(self, x_weight: Tensor, y_weight: Tensor) -> float:
        """Unbiased MMD² with each picture taken as often as its weight says; a row's pair with itself never counts."""
        wx, wy = x_weight.double(), y_weight.double()
        n, m = wx @ self.x_rows, wy @ self.y_rows
        within_x = (wx @ self.x @ wx - wx @ self.x_self) / (n * (n - 1))
        within_y = (wy @ self.y @ wy - wy @ self.y_self) / (m * (m - 1))
        return float(within_x + within_y - 2 * (wx @ self.xy @ wy) / (n * m))


def _self_sums(x: Tensor, owner: Tensor) -> Tensor:
    values = (x.square().sum(dim=1) / x.shape[1] + 1) ** 3
    return torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner, values)


def _pair_sums(x: Tensor, x_owner: Tensor, y: Tensor, y_owner: Tensor) -> Tensor:
    a, b = int(x_owner.max()) + 1, int(y_owner.max()) + 1
    sums = torch.zeros(a, b, dtype=torch.float64)
    for at in range(0, len(x), ROWS):
        by_picture = torch.zeros(len(x[at : at + ROWS]), b, dtype=torch.float64)
        by_picture.index_add_(1, y_owner, kernel(x[at : at + ROWS], y))
        sums.index_add_(0, x_owner[at : at + ROWS], by_picture)
    return sums
