"""Joint attention that knows its grid: one processor for all who compute it in windows of the training size.

Image tokens are a grid, text tokens stand before them. What is asked of the layers says what becomes of both; a layer
whose window is the whole grid is left to the processor that was there.

Every window starts at the origin that the network was trained with, and turns at the network's own pace, as text does
there, so that text is as far away as in training; between image tokens only differences count. Where positions are no
rotations but a part of the tokens, windows have those of the grid.

Tokens are (B, n + h * w, heads, head_dim), text first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from freescale.heads import Heads, output_of, project

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.unet_patches import Processor
    from freescale.windows import Grid

    Rotary = tuple[Tensor, Tensor]
    """Cosines and sines (tokens, head_dim) of each token's rotation, every one twice in a row."""


class Turns(NamedTuple):
    """The rotations of tokens; None where positions are no rotations."""

    everywhere: Rotary | None  # of all tokens, text first
    own: Rotary | None  # of the image tokens of a window
    words: Rotary | None = None  # of the text beside a window; None: it does not turn


class JointLayer(Protocol):
    """How one layer attends."""

    @property
    def window(self) -> Grid:
        """The image tokens (rows, columns) of a window, those of the grid at the training size."""

    def attended(self, heads: Heads, text: int, turns: Turns) -> Tensor:
        """Return the attention (B, n + h * w, C) of all tokens, the first `text` of which are text."""


class JointAsked(Protocol):
    """What a patch asks of every joint attention."""

    def layer(self, name: str, grid: Grid) -> JointLayer | None:
        """Return how the layer `name` attends over a grid; None where the processor that was there does it."""


@dataclass(frozen=True, eq=False)
class JointAttention:
    """The attention processor: `inner` is the one it stands in for."""

    inner: Processor
    name: str  # of the attention
    grid: Grid
    rotary_of: Callable[[Grid], Rotary] | None  # of the image tokens of a grid at the trained origin, at its own pace
    asked: JointAsked
    words_of: Callable[[Grid, int], Rotary] | None = None  # of so many text tokens beside a grid; None: no rotation
    joined: Callable[[Any], Rotary] | None = None  # makes the rotations of text and then image of what is given

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Any:
        """Return the attention of image and text tokens, or of both in one row, as `inner` does."""
        layer = self.asked.layer(self.name, self.grid)
        if layer is None:
            return as_before(
                self.inner,
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                encoder_hidden_states_mask=encoder_hidden_states_mask,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )
        heads = joint_heads(attn, hidden_states, encoder_hidden_states)
        rotary = image_rotary_emb if self.joined is None else self.joined(image_rotary_emb)
        count = heads.query.shape[1] - self.grid[0] * self.grid[1]
        own = None if self.rotary_of is None else self.rotary_of(layer.window)
        words = None if self.words_of is None else self.words_of(layer.window, count)
        if attention_mask is not None or encoder_hidden_states_mask is not None or (own is None) != (rotary is None):
            raise ValueError(f"{self.name} has a mask or no positions, allowed: joint attention as FLUX.1 has it")
        attended = layer.attended(heads, count, Turns(rotary, own, words))
        if encoder_hidden_states is None:
            return attended if attn.pre_only else output_of(attn, attended)
        image, text = output_of(attn, attended[:, count:]), attended[:, :count]
        return image, text if attn.to_add_out is None else attn.to_add_out(text)


def as_before(inner: Processor, attn: Any, hidden_states: Tensor, **given: Any) -> Any:
    """Return what `inner` makes of what it is given, without what is None."""
    return inner(attn, hidden_states, **{name: x for name, x in given.items() if x is not None})


def joint_heads(attn: Any, hidden_states: Tensor, context: Tensor | None) -> Heads:
    """Return the heads of all tokens, not rotated; without a context, text and image are in one row already."""
    image = project(attn, hidden_states)
    if context is None:
        return image
    split = (*context.shape[:2], attn.heads, -1)
    query, key, value = (layer(context).view(split) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
    query = query if attn.norm_added_q is None else attn.norm_added_q(query)
    key = key if attn.norm_added_k is None else attn.norm_added_k(key)
    text = Heads(query, key, value)
    return Heads(*(torch.cat(pair, dim=1) for pair in zip(text, image, strict=True)))


def rotated(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Return x (B, tokens, heads, head_dim) turned by its tokens' angles, in pairs of neighbours, in float32.

    Without angles it is x.
    """
    if rotary is None:
        return x
    cosines, sines = (table[None, :, None, :] for table in rotary)
    real, imaginary = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    turned = torch.stack((-imaginary, real), dim=-1).flatten(-2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * cosines + turned.to(dtype) * sines).to(x.dtype)
