"""Scale fusion in joint attention: image tokens attend to image and text, over the whole grid and in windows.

The image rows of the result are those of `scale_fusion`, before the output projection: a_G + Blur(a_L - a_G). Windows
have the trained number of tokens, at the places that `joint_attention` says. Their queries are the window's, their keys
the window's and all of the text. Text rows are those of global attention.

Tokens are (B, n + h * w, heads, head_dim), text first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from freescale.frequency import blur_grid
from freescale.heads import Heads, sdpa, sets_at_once
from freescale.joint_attention import rotated
from freescale.portions import each

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.joint_attention import JointLayer, Turns
    from freescale.scale_fusion import Fusion
    from freescale.windows import Grid, Windows

_ALLOWED = {"channel_blur": False, "border": "clamp", "phases": (1, 1), "thinning": None}


def check_joint(fusion: Fusion) -> None:
    """Raise `ValueError` for what has no meaning in joint attention."""
    for name, allowed in _ALLOWED.items():
        if (value := getattr(fusion, name)) != allowed:
            raise ValueError(f"{name} is {value!r}, allowed: {allowed!r} in joint attention")


@dataclass(frozen=True, eq=False)
class JointFusion:
    """Scale fusion as it is asked of every joint attention."""

    fusion: Fusion

    def __post_init__(self) -> None:
        """Refuse what has no meaning in joint attention."""
        check_joint(self.fusion)

    def layer(self, name: str, grid: Grid) -> JointLayer | None:
        """Return the windows of a layer; None where one is the whole grid."""
        windows = self.fusion.windows(name, grid)
        return None if windows.is_whole else _FusedLayer(windows, self.fusion)


@dataclass(frozen=True, eq=False)
class _FusedLayer:
    windows: Windows
    fusion: Fusion

    @property
    def window(self) -> Grid:
        """The image tokens of a window."""
        return self.windows.window

    def attended(self, heads: Heads, text: int, turns: Turns) -> Tensor:
        """Return the fused attention of all tokens."""
        return fused(heads, text, self.windows, turns, self.fusion)


def fused(heads: Heads, text: int, windows: Windows, turns: Turns, fusion: Fusion, frames: int = 1) -> Tensor:
    """Return the attention (B, n + F * h * w, C) of all tokens, the first `text` of which are text.

    Of a video, a window spans all frames, and the blur is one over each frame.
    """
    everywhere = Heads(rotated(heads.query, turns.everywhere), rotated(heads.key, turns.everywhere), heads.value)
    attended = sdpa(everywhere)
    if fusion.bands == "global":
        return attended
    whole = attended[:, text:].reshape(attended.shape[0] * frames, *windows.grid, -1)
    local = windowed(heads, text, windows, turns, fusion.window_rows, frames).flatten(0, 1)
    if fusion.bands == "local":
        image = local
    else:
        low, high = (whole, local) if fusion.bands == "swapped" else (local, whole)
        image = high + blur_grid(low - high, fusion.taps, fusion.blur_border)
    return torch.cat([attended[:, :text], image.view(attended.shape[0], -1, attended.shape[2])], dim=1)


def windowed(
    heads: Heads, text: int, windows: Windows, turns: Turns, window_rows: int | None = None, frames: int = 1
) -> Tensor:
    """Return a_L (B, F, h, w, C): image tokens attend to their window and to the text, averaged over their windows.

    Windows are added in their order one by one, so their chunks change no bit.
    """
    context, image = (Heads(*(x[:, part] for x in heads)) for part in (slice(text), slice(text, None)))
    context = context._replace(key=rotated(context.key, turns.words))
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
        key, value = torch.cat([keys, rotated(key, turns.own)], dim=1), torch.cat([values, value], dim=1)
        attended = sdpa(Heads(rotated(query, turns.own), key, value))
        attended = attended.view(batch, len(chunk), frames, *windows.window, -1)
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
