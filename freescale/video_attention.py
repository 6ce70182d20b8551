"""Attention over all tokens of a video, as Wan has it: scale fusion, and tiles of queries with rectified positions.

Tokens are (B, F * h * w, C), frame by frame. Windows and tiles are parts of the grid of a frame, through all frames.
There is no text among the tokens. Queries and keys are normalised over all heads together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freescale.heads import Heads, output_of
from freescale.joint_attention import Turns
from freescale.joint_fusion import check_joint, fused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.joint_attention import Rotary
    from freescale.rectified_attention import RotaryAt, Tiles
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Processor
    from freescale.windows import Grid


@dataclass(frozen=True, eq=False)
class VideoFusion:
    """The attention processor: `inner` is the one it stands in for, at sizes that the network was trained at."""

    inner: Processor
    name: str  # of the attention
    grid: Grid  # tokens of a frame
    rotary_of: Callable[[int, Grid], Rotary]  # of so many frames of a grid, at the network's own pace
    fusion: Fusion

    def __post_init__(self) -> None:
        """Refuse what has no meaning over tokens of many frames."""
        check_joint(self.fusion)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the attention (B, F * h * w, C) of the tokens, as `inner` does."""
        windows = self.fusion.windows(self.name, self.grid)
        if windows.is_whole or rotary_emb is None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        frames = hidden_states.shape[1] // (self.grid[0] * self.grid[1])
        heads, own = video_heads(attn, hidden_states), self.rotary_of(frames, windows.window)
        return output_of(attn, fused(heads, 0, windows, Turns(flat(rotary_emb), own), self.fusion, frames))


@dataclass(frozen=True, eq=False)
class VideoRectified:
    """The attention processor of `RectifiedAttention` for the tokens of a video."""

    inner: Processor
    name: str  # of the attention
    tiles: Tiles
    rotary_at: RotaryAt

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the attention (B, F * h * w, C) of the tokens, as `inner` does."""
        if self.tiles.is_trained:
            output: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return output
        frames = hidden_states.shape[1] // (self.tiles.grid[0] * self.tiles.grid[1])
        return output_of(attn, self.tiles.attended(video_heads(attn, hidden_states), 0, self.rotary_at, frames))


def video_heads(attn: Any, tokens: Tensor) -> Heads:
    """Return the heads of tokens (B, N, C), not rotated; queries and keys are normalised over all heads together."""
    given = attn.norm_q(attn.to_q(tokens)), attn.norm_k(attn.to_k(tokens)), attn.to_v(tokens)
    return Heads(*(each.unflatten(2, (attn.heads, -1)) for each in given))


def flat(given: tuple[Tensor, Tensor]) -> Rotary:
    """Return cosines and sines (tokens, head_dim) of those that the network gives its attention."""
    return given[0][0, :, 0], given[1][0, :, 0]
