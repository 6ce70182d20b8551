"""Muon (Keller Jordan, 2024) for the matrices of transformer blocks, AdamW for every other parameter.

`torch.optim.Muon` works in bfloat16, which a processor without AVX-512 multiplies ten times slower than float32.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the published coefficients, five iterations
LIKE_ADAM = 0.2  # root mean square of an AdamW step in units of the learning rate, arXiv 2502.16982


def orthogonal(gradients: Tensor) -> Tensor:
    """Return the matrices (N, m, n) with all singular values brought near 1, by five Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    tall = gradients.shape[-2] > gradients.shape[-1]
    x = gradients.mT if tall else gradients
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but Muon with Nesterov momentum for the parameters marked by `use_muon`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; the gradients of the matrices are used up, so that AdamW passes over them."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None and getattr(parameter, "muon", False):
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                rate = group["lr"] * LIKE_ADAM * max(shape) ** 0.5
                updates = orthogonal(torch.stack([self._momentum(p) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
                    parameter.grad = None
        super().step(closure)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state |= {"momentum": torch.zeros_like(parameter), "step": torch.zeros(())}  # AdamW's load wants a step
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def use_muon(parameters: Iterable[nn.Parameter]) -> None:
    """Mark the matrices that `MuonAdamW` steps along."""
    for parameter in parameters:
        parameter.muon = True  # type: ignore[attr-defined]
