"""ToDo (arXiv:2402.13573): every token asks, and keys and values are those of a part of the tokens.

Keys and values are thinned to every f-th token a side, the nearest one, so that the cost of attention is divided by
f^2; with f the scale over the training size a token has as many keys as in training. It is no exact saving: the
attention is another one.

The release thins where a layer has 320 channels and no other, which is nowhere in SDXL, and goes over to merged tokens
below timestep 200. Here the grid decides, at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale.grid_attention import attend_on_grids
from freescale.heads import Heads, output_of, project, sdpa
from freescale.windows import Grid, window_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from freescale.cascade import Level
    from freescale.unet_patches import Patch

Thinning = tuple[float, float]
"""The factor f along (height, width), 1 or more."""


def todo_patches(level: Level) -> Iterator[Patch]:
    """Yield ToDo with the factors of the level, or nothing where it has none."""
    if level.thinning is not None:
        yield attend_on_grids(ToDo(level.thinning))


@dataclass(frozen=True)
class ToDo:
    """What is asked of every spatial self-attention."""

    factor: Thinning

    def output(self, attn: Any, hidden_states: Tensor, name: str, grid: Grid) -> Tensor | None:
        """Return the output (B, h * w, C) of a layer; None where all tokens stay keys."""
        if window_size(grid, self.factor) == grid:
            return None
        keys = hidden_states[:, kept_tokens(grid, self.factor).to(hidden_states.device)]
        return output_of(attn, sdpa(project(attn, hidden_states, keys)))


def kept_tokens(grid: Grid, factor: Thinning) -> Tensor:
    """Return the tokens that stay keys, (rows * columns,) int64: on each axis the nearest to an even spread.

    There are as many as `window_size` has at this scale, and with a whole factor it is every f-th, from the first on.
    """
    rows, columns = (
        torch.arange(kept) * length // kept for length, kept in zip(grid, window_size(grid, factor), strict=True)
    )
    return (rows[:, None] * grid[1] + columns[None, :]).flatten()


def thin_keys(heads: Heads, grid: Grid, factor: Thinning) -> Heads:
    """Return the heads with the keys and values of the tokens that stay."""
    kept = kept_tokens(grid, factor).to(heads.key.device)
    return Heads(heads.query, heads.key[:, kept], heads.value[:, kept])
