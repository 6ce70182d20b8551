"""Self-attention that knows its grid: one attention processor for all who compute a layer's attention in another way.

What is asked of the layers says what it makes of plain self-attention over a grid of tokens; all else (cross-attention,
masks, layers with a norm of their own) is left to the processor that was there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from freescale.heads import is_plain_self_attention
from freescale.unet_patches import record_token_grids, replace_self_attention, together, transformer_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale.unet_patches import Patch, Processor
    from freescale.windows import Grid


class Asked(Protocol):
    """What a patch asks of every spatial self-attention."""

    def output(self, attn: Any, hidden_states: Tensor, name: str, grid: Grid) -> Tensor | None:
        """Return the output (B, h * w, C) of the layer `attn`, called `name`, before its residual.

        None where the processor that was there does it.
        """


def attend_on_grids(asked: Asked) -> Patch:
    """Compute every spatial self-attention of a UNet as `asked`."""
    grids: dict[str, Grid] = {}
    return together(
        record_token_grids(grids),
        replace_self_attention(lambda name, inner: GridAttention(inner, name, grids, asked)),
    )


@dataclass(frozen=True, eq=False)
class GridAttention:
    """The attention processor: `inner` is the one it stands in for."""

    inner: Processor
    name: str  # of the self-attention
    grids: Mapping[str, Grid]  # by name of its transformer, written before each forward
    asked: Asked

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the attention output (B, h * w, C)."""
        if is_plain_self_attention(attn, hidden_states, encoder_hidden_states, attention_mask):
            grid = grid_of(self.grids, self.name, hidden_states)
            output = self.asked.output(attn, hidden_states, self.name, grid)
            if output is not None:
                output = output + hidden_states if attn.residual_connection else output
                return cast("Tensor", output / attn.rescale_output_factor)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)


def grid_of(grids: Mapping[str, Grid], name: str, hidden_states: Tensor) -> Grid:
    """Return the grid of a self-attention. Raises `ValueError` where its tokens (B, N, C) are not those of the grid."""
    h, w = grids[transformer_name(name)]
    if h * w != hidden_states.shape[1]:
        raise ValueError(f"{name} has {hidden_states.shape[1]} tokens, allowed: its grid {h} x {w}")
    return h, w
