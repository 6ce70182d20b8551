"""Computing without gradients."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, or generator function, under `torch.no_grad`, which is asked for when it is called.

    Between the yields of a generator, gradients are as its caller has them.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        decorated: Callable[P, T] = torch.no_grad()(function)
        return decorated(*args, **kwargs)

    return call
