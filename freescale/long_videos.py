"""More frames than a model was trained for (FreeNoise, arXiv:2310.15169), without tuning.

Two changes are enough; convolutions over time are local and stay as they are.

*Noise rescheduling*: noise is drawn for as many frames as the model knows, and every further stretch of `stride`
frames takes the noise of the stretch one training length earlier, its frames shuffled: frames far apart share their
noise, so the content stays, and its order differs, so the motion goes on.

*Window-fused attention*: attention over frames runs in windows of the training length, `stride` apart, and a frame's
outputs are averaged with weights that fall from a window's middle to its ends.

Temporal attention has tokens (B * h * w, F, C). Where it adds positions (AnimateDiff), each window counts from 0.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale.forward_process import generator, normal
from freescale.unet_patches import together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from freescale.cascade import Level
    from freescale.unet_patches import Patch, Processor

MOST_ROWS = 65_535
"""Rows of one attention call: temporal attention has one for each latent cell of a picture, and some fused kernels put
them on a grid axis of this length (both guidance halves at 1280x2048: 81 920)."""


def video_noise(
    shape: Sequence[int], native: int | None, seed: int, *purpose: str | int, stride: int | None = None
) -> Tensor:
    """Return standard normal noise (B, C, [F,] h, w), rescheduled where there are more frames than `native`.

    Up to `native` frames, and for images, it is `normal(shape, seed, *purpose)`.
    """
    if native is None or len(shape) != 5 or shape[2] <= native:
        return normal(shape, seed, *purpose)
    noise = normal((*shape[:2], native, *shape[3:]), seed, *purpose)
    return noise[:, :, frame_order(shape[2], native, stride or default_stride(native), seed, *purpose)]


def frame_order(frames: int, native: int, stride: int, seed: int, *purpose: str | int) -> Tensor:
    """Return which of the `native` drawn frames each of `frames` frames takes, (frames,) int64."""
    order = torch.arange(native)
    while len(order) < frames:
        earlier = order[len(order) - native : len(order) - native + stride]
        shuffle = torch.randperm(len(earlier), generator=generator(seed, *purpose, "frames", len(order)))
        order = torch.cat([order, earlier[shuffle]])
    return order[:frames]


def default_stride(native: int) -> int:
    """Return a quarter of the training length, as published: 4 of 16 frames."""
    return max(1, native // 4)


def temporal_patches(latents: Tensor, level: Level) -> Iterator[Patch]:
    """Yield the patches that the size of a video asks for; none for images.

    With more frames than the model was trained for, attention over frames is windowed. Where one call would have more
    than `MOST_ROWS` rows, it is made in chunks of rows.
    """
    if latents.ndim != 5:
        return
    if 2 * latents.shape[0] * latents.shape[3] * latents.shape[4] > MOST_ROWS:
        yield replace_temporal_attention(lambda inner, _: RowChunks(inner))
    if level.frames is not None and latents.shape[2] > level.frames:
        yield window_temporal_attention(level.frames, level.frame_stride or default_stride(level.frames))


def window_weights(window: int) -> Tensor:
    """Return how much each frame of a window counts, (window,) float32: 1, 2, 3, ... 3, 2, 1."""
    ahead = torch.arange(1, window + 1, dtype=torch.float32)
    return torch.minimum(ahead, ahead.flip(0))


def temporal_blocks(unet: nn.Module) -> list[tuple[str, Any]]:
    """Return (name, transformer block) of everything that attends over frames."""
    marks = ("transformer_in.", ".temp_attentions.", ".motion_modules.")
    return [
        (name, block)
        for name, block in unet.named_modules()
        if any(mark in f".{name}" for mark in marks) and hasattr(block, "attn1")
    ]


def window_temporal_attention(window: int, stride: int) -> Patch:
    """Attend over frames in windows of `window`, `stride` apart, the last one ending with the last frame.

    Raises `ValueError` for a stride below 1 or above the window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride of temporal windows is {stride}, allowed: 1 to the window, {window}")
    return together(
        replace_temporal_attention(lambda inner, positions: TemporalWindows(inner, window, stride, positions)),
        _without_positions,
    )


def replace_temporal_attention(wrap: Callable[[Processor, nn.Module | None], Processor]) -> Patch:
    """Put `wrap(processor, positions)` in place of the processor of every attention over frames.

    `positions` is what the block adds to the tokens of each, or None.
    """

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Wrap both attentions of every temporal block."""
        with ExitStack() as stack:
            for _, block in temporal_blocks(unet):
                for attention in (block.attn1, block.attn2):
                    if attention is not None:
                        stack.callback(attention.set_processor, attention.processor)
                        attention.set_processor(wrap(attention.processor, getattr(block, "pos_embed", None)))
            yield

    return patch


@contextmanager
def _without_positions(unet: nn.Module) -> Iterator[None]:
    """Blocks add no positions: a window's own are added to it, and the table ends at the longest trained video."""
    with ExitStack() as stack:
        for _, block in temporal_blocks(unet):
            if getattr(block, "pos_embed", None) is not None:
                stack.callback(setattr, block, "pos_embed", block.pos_embed)
                block.pos_embed = torch.nn.Identity()
        yield


@dataclass(frozen=True, eq=False)
class RowChunks:
    """The attention processor that calls the one it replaces, `inner`, with at most `MOST_ROWS` rows at a time."""

    inner: Processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the attention output, as `hidden_states` (rows, F, C)."""
        if len(hidden_states) <= MOST_ROWS or encoder_hidden_states is not None or attention_mask is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        chunks = hidden_states.chunk(-(-len(hidden_states) // MOST_ROWS))
        return torch.cat([self.inner(attn, chunk, None, None, *args, **kwargs) for chunk in chunks])


@dataclass(frozen=True, eq=False)
class TemporalWindows:
    """The attention processor that calls the one it replaces, `inner`, for each window of frames."""

    inner: Processor
    window: int
    stride: int
    positions: nn.Module | None = None  # added to the tokens of each window

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
        """Return the attention output (B * h * w, F, C)."""
        if encoder_hidden_states is not None or attention_mask is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        frames, window = hidden_states.shape[1], min(self.window, hidden_states.shape[1])
        weights = window_weights(window)[:, None].to(hidden_states.device)
        total = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        count = torch.zeros(frames, 1, device=hidden_states.device)
        for first in frame_windows(frames, window, self.stride):
            seen = hidden_states[:, first : first + window]
            seen = seen if self.positions is None else self.positions(seen)
            output = self.inner(attn, seen, None, None, temb, *args, **kwargs)
            total[:, first : first + window] += weights * output
            count[first : first + window] += weights
        return (total / count).to(hidden_states.dtype)


def frame_windows(frames: int, window: int, stride: int) -> tuple[int, ...]:
    """Return the first frames of the windows, in order; together they cover every frame."""
    return tuple(dict.fromkeys(min(first, frames - window) for first in range(0, frames - window + stride, stride)))
