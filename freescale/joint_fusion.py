"""Scale fusion in joint attention: image tokens attend to image and text, over the whole grid and in windows.

The image rows of the result are those of `scale_fusion`, before the output projection: a_G + Blur(a_L - a_G). Windows
have the trained number of tokens. Their queries are the window's, their keys the window's and all of the text. Every
window starts at the origin that the network was trained with, and turns at the network's own pace, as text does there,
so that text is as far away as in training; between image tokens only differences count. Where positions are no
rotations but a part of the tokens, windows have those of the grid. Text rows are those of global attention.

Tokens are (B, n + h * w, heads, head_dim), text first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from freescale.frequency import blur_grid
from freescale.heads import Heads, output_of, project, sdpa, sets_at_once
from freescale.portions import each

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Processor
    from freescale.windows import Grid, Windows

    Rotary = tuple[Tensor, Tensor]
    """Cosines and sines (tokens, head_dim) of each token's rotation, every one twice in a row."""


@dataclass(frozen=True, eq=False)
class JointFusion:
    """The attention processor: `inner` is the one it stands in for, at sizes that the network was trained at."""

    inner: Processor
    name: str  # of the attention
    grid: Grid
    rotary_of: Callable[[Grid], Rotary] | None  # of the image tokens of a grid at the trained origin, at its own pace
    fusion: Fusion
    words_of: Callable[[Grid, int], Rotary] | None = None  # of so many text tokens beside a grid; None: no rotation
    joined: Callable[[Any], Rotary] | None = None  # makes the rotations of text and then image of what is given

    def __post_init__(self) -> None:
        """Refuse what has no meaning in joint attention."""
        check_joint(self.fusion)

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
        windows = self.fusion.windows(self.name, self.grid)
        if windows.is_whole:
            given = {
                "encoder_hidden_states": encoder_hidden_states,
                "encoder_hidden_states_mask": encoder_hidden_states_mask,
                "attention_mask": attention_mask,
                "image_rotary_emb": image_rotary_emb,
            }
            return self.inner(attn, hidden_states, **{name: x for name, x in given.items() if x is not None})
        heads = joint_heads(attn, hidden_states, encoder_hidden_states)
        rotary = image_rotary_emb if self.joined is None else self.joined(image_rotary_emb)
        count = heads.query.shape[1] - self.grid[0] * self.grid[1]
        own = None if self.rotary_of is None else self.rotary_of(windows.window)
        words = None if self.words_of is None else self.words_of(windows.window, count)
        if attention_mask is not None or encoder_hidden_states_mask is not None or (own is None) != (rotary is None):
            raise ValueError(f"{self.name} has a mask or no positions, allowed: joint attention as FLUX.1 has it")
        attended = fused(heads, count, windows, rotary, own, self.fusion, words)
        if encoder_hidden_states is None:
            return attended if attn.pre_only else output_of(attn, attended)
        image, text = output_of(attn, attended[:, count:]), attended[:, :count]
        return image, text if attn.to_add_out is None else attn.to_add_out(text)


_ALLOWED = {"channel_blur": False, "border": "clamp", "phases": (1, 1), "thinning": None}


def check_joint(fusion: Fusion) -> None:
    """Raise `ValueError` for what has no meaning in joint attention."""
    for name, allowed in _ALLOWED.items():
        if (value := getattr(fusion, name)) != allowed:
            raise ValueError(f"{name} is {value!r}, allowed: {allowed!r} in joint attention")


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


def fused(
    heads: Heads,
    text: int,
    windows: Windows,
    rotary: Rotary | None,
    own: Rotary | None,
    fusion: Fusion,
    words: Rotary | None = None,
    frames: int = 1,
) -> Tensor:
    """Return the attention (B, n + F * h * w, C) of all tokens, the first `text` of which are text.

    `rotary` is that of all tokens, `own` that of a window's and `words` that of the text there, at the network's pace.
    Of a video, a window spans all frames, and the blur is one over each frame.
    """
    everywhere = Heads(rotated(heads.query, rotary), rotated(heads.key, rotary), heads.value)
    attended = sdpa(everywhere)
    if fusion.bands == "global":
        return attended
    whole = attended[:, text:].reshape(attended.shape[0] * frames, *windows.grid, -1)
    local = windowed(heads, text, windows, own, fusion.window_rows, words, frames).flatten(0, 1)
    if fusion.bands == "local":
        image = local
    else:
        low, high = (whole, local) if fusion.bands == "swapped" else (local, whole)
        image = high + blur_grid(low - high, fusion.taps, fusion.blur_border)
    return torch.cat([attended[:, :text], image.view(attended.shape[0], -1, attended.shape[2])], dim=1)


def windowed(
    heads: Heads,
    text: int,
    windows: Windows,
    own: Rotary | None,
    window_rows: int | None = None,
    words: Rotary | None = None,
    frames: int = 1,
) -> Tensor:
    """Return a_L (B, F, h, w, C): image tokens attend to their window and to the text, averaged over their windows.

    Windows are added in their order one by one, so their chunks change no bit.
    """
    context, image = (Heads(*(x[:, part] for x in heads)) for part in (slice(text), slice(text, None)))
    context = context._replace(key=rotated(context.key, words))
    batch, _, count, size = image.query.shape
    total_dtype = torch.promote_types(image.query.dtype, torch.float32)
    total = torch.zeros(batch, frames, *windows.grid, count * size, device=image.query.device, dtype=total_dtype)
    tokens = frames * windows.window[0] * windows.window[1] + text
    at_once = sets_at_once(image, tokens, window_rows)
    if frames > 1:  # a window of a video may be as large as a picture: fewer at once than are asked for at most
        at_once = min(at_once, sets_at_once(image, tokens, None))
    for chunk in each(list(windows.chunks(at_once)), len):
        index = _in_frames(chunk.tokens(image.query.device), windows.grid, frames)
        query, key, value = (x[:, index].flatten(0, 1) for x in image)
        keys, values = (x.repeat_interleave(len(chunk), 0) for x in context[1:])
        key, value = torch.cat([keys, rotated(key, own)], dim=1), torch.cat([values, value], dim=1)
        attended = sdpa(Heads(rotated(query, own), key, value)).view(batch, len(chunk), frames, *windows.window, -1)
        for number in each(range(len(chunk))):
            grid, window = chunk.overlap(number)
            total[:, :, *grid] += attended[:, number, :, *window]
    return total.div_(windows.count(total.device).to(total_dtype)[..., None]).to(image.query.dtype)


def _in_frames(index: Tensor, grid: Grid, frames: int) -> Tensor:
    """Return the tokens (windows, F * T) of windows through all frames, for those of the first one, (windows, T)."""
    if frames == 1:
        return index
    first = grid[0] * grid[1] * torch.arange(frames, device=index.device)
    return (first[:, None] + index[:, None]).flatten(1)
