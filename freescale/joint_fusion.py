"""Scale fusion in joint attention: image tokens attend to image and text, over the whole grid and in windows.

The image rows of the result are those of `scale_fusion`, before the output projection: a_G + Blur(a_L - a_G). Windows
have the trained number of tokens. Their queries are the window's, their keys the window's and all of the text. Every
window starts at the origin that the network was trained with, and turns at the network's own pace, as text does there,
so that text is as far away as in training; between image tokens only differences count. Text rows are those of global
attention.

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
    rotary_of: Callable[[Grid], Rotary]  # of the image tokens of a grid at the trained origin, at the network's pace
    fusion: Fusion
    words_of: Callable[[int], Rotary] | None = None  # of so many text tokens, at the network's pace; None: no rotation

    def __post_init__(self) -> None:
        """Refuse what has no meaning in joint attention."""
        check_joint(self.fusion)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        """Return the attention of image and text tokens, or of both in one row, as `inner` does."""
        windows = self.fusion.windows(self.name, self.grid)
        if windows.is_whole:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None or image_rotary_emb is None:
            raise ValueError(f"{self.name} has a mask or no positions, allowed: joint attention as FLUX.1 has it")
        heads = joint_heads(attn, hidden_states, encoder_hidden_states)
        count = heads.query.shape[1] - self.grid[0] * self.grid[1]
        words = None if self.words_of is None else self.words_of(count)
        own = self.rotary_of(windows.window)
        attended = fused(heads, count, windows, image_rotary_emb, own, self.fusion, words)
        if encoder_hidden_states is None:
            return attended
        return output_of(attn, attended[:, count:]), attn.to_add_out(attended[:, :count])


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
    text = Heads(attn.norm_added_q(query), attn.norm_added_k(key), value)
    return Heads(*(torch.cat(pair, dim=1) for pair in zip(text, image, strict=True)))


def rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Return x (B, tokens, heads, head_dim) turned by its tokens' angles, in pairs of neighbours, in float32."""
    cosines, sines = (table[None, :, None, :] for table in rotary)
    real, imaginary = x.view(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    turned = torch.stack((-imaginary, real), dim=-1).flatten(-2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * cosines + turned.to(dtype) * sines).to(x.dtype)


def fused(
    heads: Heads,
    text: int,
    windows: Windows,
    rotary: Rotary,
    own: Rotary,
    fusion: Fusion,
    words: Rotary | None = None,
) -> Tensor:
    """Return the attention (B, n + h * w, C) of all tokens, the first `text` of which are text.

    `rotary` is that of all tokens, `own` that of a window's and `words` that of the text there, at the network's pace.
    """
    everywhere = Heads(rotated(heads.query, rotary), rotated(heads.key, rotary), heads.value)
    attended = sdpa(everywhere)
    if fusion.bands == "global":
        return attended
    whole = attended[:, text:].reshape(attended.shape[0], *windows.grid, -1)
    local = windowed(heads, text, windows, own, fusion.window_rows, words)
    if fusion.bands == "local":
        image = local
    else:
        low, high = (whole, local) if fusion.bands == "swapped" else (local, whole)
        image = high + blur_grid(low - high, fusion.taps, fusion.blur_border)
    return torch.cat([attended[:, :text], image.flatten(1, 2)], dim=1)


def windowed(
    heads: Heads,
    text: int,
    windows: Windows,
    own: Rotary,
    window_rows: int | None = None,
    words: Rotary | None = None,
) -> Tensor:
    """Return a_L (B, h, w, C): image tokens attend to their window and to the text, averaged over their windows.

    Windows are added in their order one by one, so their chunks change no bit.
    """
    context, image = (Heads(*(x[:, part] for x in heads)) for part in (slice(text), slice(text, None)))
    context = context if words is None else context._replace(key=rotated(context.key, words))
    batch, _, count, size = image.query.shape
    total_dtype = torch.promote_types(image.query.dtype, torch.float32)
    total = torch.zeros(batch, *windows.grid, count * size, device=image.query.device, dtype=total_dtype)
    at_once = sets_at_once(image, windows.window[0] * windows.window[1] + text, window_rows)
    for chunk in each(list(windows.chunks(at_once)), len):
        index = chunk.tokens(image.query.device)
        query, key, value = (x[:, index].flatten(0, 1) for x in image)
        keys, values = (x.repeat_interleave(len(chunk), 0) for x in context[1:])
        key, value = torch.cat([keys, rotated(key, own)], dim=1), torch.cat([values, value], dim=1)
        attended = sdpa(Heads(rotated(query, own), key, value)).view(batch, len(chunk), *windows.window, -1)
        for number in each(range(len(chunk))):
            grid, window = chunk.overlap(number)
            total[:, *grid] += attended[:, number, *window]
    return total.div_(windows.count(total.device).to(total_dtype)[..., None]).to(image.query.dtype)
