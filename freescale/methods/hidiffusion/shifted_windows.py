"""Self-attention within four shifted windows (HiDiffusion, arXiv:2311.17528, "Modified Shifted Window Multi-head
Self-Attention"): at the largest grids attention is local anyway, and a quarter of its cost is enough.

The grid is cut in two along each axis after it was rolled by a random part of a window, so that no seam stays in
place. The windows share no token: the layer runs as it is, once for all windows, on regrouped tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale.grid_attention import grid_of
from freescale.methods.hidiffusion.rau_net import first_attended
from freescale.unet_patches import record_token_grids, replace_self_attention, together
from freescale.windows import Grid, rolled_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from freescale.unet_patches import Patch, Processor


def shifted_windows(quarters: Callable[[str], int], shifts: int = 4) -> Patch:
    """Cut the self-attentions of the largest attended grid into windows.

    Layer `name` is rolled by quarters(name) of the `shifts` equal parts of a window, on both axes alike.
    """

    def patch(unet: nn.Module) -> AbstractContextManager[None]:
        """Wrap the self-attentions of the first attended block and of its mirror image."""
        grids: dict[str, Grid] = {}
        first = first_attended(unet)
        blocks = (f"down_blocks.{first}.", f"up_blocks.{len(unet.up_blocks) - 1 - first}.")  # type: ignore[arg-type]

        def wrap(name: str, inner: Processor) -> Processor:
            """Return the processor of one layer: its own outside of these blocks."""
            if not name.startswith(blocks):
                return inner
            return ShiftedWindows(inner, name, grids, quarters(name), shifts)

        return together(record_token_grids(grids), replace_self_attention(wrap))(unet)

    return patch


@dataclass(frozen=True, eq=False)
class ShiftedWindows:
    """The attention processor that calls the one it replaces, `inner`, for each window."""

    inner: Processor
    name: str  # of the self-attention
    grids: Mapping[str, Grid]  # by name of its transformer, written before each forward
    quarter: int
    shifts: int = 4

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
        if encoder_hidden_states is not None or attention_mask is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        h, w = grid_of(self.grids, self.name, hidden_states)
        shift = tuple(-(-side // 2) // self.shifts * self.quarter for side in (h, w))
        output = torch.empty_like(hidden_states)
        for sets in rolled_halves((h, w), (shift[0], shift[1])):
            index = sets.to(hidden_states.device)
            given = hidden_states[:, index]
            attended = self.inner(attn, given.flatten(0, 1), None, None, temb, *args, **kwargs)
            output[:, index] = attended.view(given.shape)
        return output
