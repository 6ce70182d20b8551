"""Inception score (arXiv 1606.03498, section 4): exp of the mean divergence of p(y|x) from p(y).

It grows with the number of rows in a split, so it is compared only at equal counts. Rows are shuffled by seed before
they are split: crops of one picture sit side by side and would each fill a split with one thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freescale.forward_process import generator
from stages.metrics.statistics import checked_rows


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and population deviation over `splits` parts of the rows of `logits` (n, classes); from 1 to `classes`."""
    rows = checked_rows(logits)
    if not 1 <= splits <= len(rows):
        raise ValueError(f"splits must be from 1 to the number of rows, {len(rows)}, not {splits}")
    order = torch.randperm(len(rows), generator=generator(seed, "inception score"))
    log_p = torch.log_softmax(rows[order], dim=1)
    scores = torch.stack([_score(part) for part in torch.tensor_split(log_p, splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    marginal = p.mean(dim=0).log()
    terms = torch.where(p > 0, p * (log_p - marginal), 0.0)  # 0 log 0 = 0
    return terms.sum(dim=1).mean().exp()
