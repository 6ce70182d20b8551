"""Scale fusion (FreeScale, section of that name): self-attention at two scales, joined by frequency.

Global attention over the whole grid knows the content but, beyond the training size, repeats objects; local
attention over windows of the training size builds sound structure. With L and G their outputs, the layer
returns

    Blur(L) + G - Blur(G)  =  G + Blur(L - G):

low frequencies from L, high frequencies from G. What is computed here is equal to running the layer once for
each window and once for the grid, at a fraction of the cost: projections act on single tokens, so q, k and v
are shared; the output projection W a + b is linear and commutes with window averages (whose weights sum to 1)
and with the blur over the grid, and b cancels in L - G. With a_L, a_G the attention before the projection and
d = Blur(a_L - a_G):

    G + Blur(L - G) = W (a_G + d) + b,    or, blurred along the channels too,   (W a_G + b) + Blur_C(W d).

Shapes: tokens are (B, h * w, heads, head_dim), attention outputs (B, h, w, C).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from freescale.frequency import BlurBorder, blur_channels, blur_grid
from freescale.grid_attention import attend_on_grids
from freescale.heads import Heads, attend, output_of, project, sdpa, sets_at_once
from freescale.portions import each
from freescale.todo import thin_keys
from freescale.windows import Grid, WindowBorder, Windows, phase_tokens, place_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from freescale.unet_patches import Patch

Bands = Literal["fused", "local", "global", "swapped"]


@dataclass(frozen=True, eq=False)
class Fusion:
    """What one level and step ask of every self-attention."""

    scale: tuple[float, float]  # grid over training grid, (height, width)
    taps: tuple[float, ...]  # of the blur, in tokens
    channel_blur: bool = True
    blur_border: BlurBorder = "zero"
    border: WindowBorder = "clamp"
    bands: Bands = "fused"
    phases: Grid = (1, 1)  # fast mode: global attention within interleaved phases
    jitter: Callable[[str, Grid], torch.Generator] | None = None
    window_rows: int | None = None  # most rows of one call (batch rows x windows); None: what the device takes well
    thinning: tuple[float, float] | None = None  # of the keys of global attention (`todo`); None: all of them

    def windows(self, name: str, grid: Grid) -> Windows:
        """Return the windows of the layer `name`."""
        jitter = self.jitter(name, grid) if self.jitter else None
        return place_windows(grid, self.scale, jitter=jitter, border=self.border)

    def output(self, attn: Any, hidden_states: Tensor, name: str, grid: Grid) -> Tensor | None:
        """Return the fused output (B, h * w, C) of a layer; None where one window is the whole grid."""
        windows = self.windows(name, grid)
        return None if windows.is_whole else fuse_scales(attn, hidden_states, windows, self)


def scale_fusion(fusion: Fusion) -> Patch:
    """Fuse scales in every spatial self-attention of a UNet."""
    return attend_on_grids(fusion)


def fuse_scales(attn: Any, hidden_states: Tensor, windows: Windows, fusion: Fusion) -> Tensor:
    """Return the fused output (B, h * w, C) of the layer `attn` for its normalised input (B, h * w, C)."""
    heads = project(attn, hidden_states)
    outside = project(attn, torch.zeros_like(hidden_states[:1, :1])) if fusion.border == "sink" else None
    scales = {
        "local": lambda: local_attention(heads, windows, outside, fusion.window_rows),
        "global": lambda: global_attention(heads, windows.grid, fusion.phases, fusion.window_rows, fusion.thinning),
    }
    if fusion.bands in scales:
        return output_of(attn, scales[fusion.bands]().flatten(1, 2))
    high, low = ("local", "global") if fusion.bands == "swapped" else ("global", "local")
    detail = scales[high]()
    correction = blur_grid(scales[low]().sub_(detail), fusion.taps, fusion.blur_border)
    if not fusion.channel_blur:
        return output_of(attn, detail.add_(correction).flatten(1, 2))
    linear = output_of(attn, correction).sub_(output_of(attn, torch.zeros_like(correction[:1, :1, :1])))
    correction = blur_channels(linear, fusion.taps, fusion.blur_border)
    return output_of(attn, detail.flatten(1, 2)).add_(correction.flatten(1, 2))


def local_attention(
    heads: Heads, windows: Windows, outside: Heads | None = None, window_rows: int | None = None
) -> Tensor:
    """Return a_L (B, h, w, C): attention within each window, averaged over the windows that cover a token.

    `outside` holds the projections of a zero token, (1, 1, heads, head_dim), to which windows that leave the
    grid attend; without it they attend to their inside only. Windows are added in their order one by one, so
    neither their chunks nor atomic additions change a bit.
    """
    query, tokens = heads.query, heads.query.shape[1]
    batch, channels = query.shape[0], query.shape[2] * query.shape[3]
    if outside is not None:
        heads = Heads(*(_with_token(x, token) for x, token in zip(heads, outside, strict=True)))
    total_dtype = torch.promote_types(query.dtype, torch.float32)
    total = torch.zeros(batch, *windows.grid, channels, device=query.device, dtype=total_dtype)
    chunks = list(windows.chunks(sets_at_once(heads, math.prod(windows.window), window_rows)))
    leaves_grid = windows.leaves_grid
    for chunk in each(chunks, lambda chunk: (len(chunk), leaves_grid and chunk.leaves_grid)):
        index, is_inside = chunk.tokens(query.device), None
        if outside is None and chunk.leaves_grid:
            is_inside = index < tokens
            index = index.clamp(max=tokens - 1)
        attended = attend(heads, index, is_inside)
        attended = attended.view(batch, -1, *windows.window, channels)
        for number in each(range(len(chunk))):  # an addition in place takes nothing
            grid, window = chunk.overlap(number)
            total[:, *grid] += attended[:, number, *window]
    return total.div_(windows.count(query.device).to(total_dtype)[..., None]).to(query.dtype)


def _with_token(x: Tensor, token: Tensor) -> Tensor:
    return torch.cat([x, token.expand(x.shape[0], -1, -1, -1)], dim=1)


def global_attention(
    heads: Heads,
    grid: Grid,
    phases: Grid = (1, 1),
    window_rows: int | None = None,
    thinning: tuple[float, float] | None = None,
) -> Tensor:
    """Return a_G (B, h, w, C): attention over the whole grid, or within each of its interleaved phases.

    With `thinning` the whole grid attends to a part of the keys and values (`todo`).
    """
    query = heads.query
    if phases == (1, 1):
        seen = heads if thinning is None else thin_keys(heads, grid, thinning)
        return sdpa(seen).view(query.shape[0], *grid, -1)
    output = torch.empty_like(query).flatten(2)
    for group in phase_tokens(grid, phases):
        for index in each(torch.split(group, sets_at_once(heads, group.shape[1], window_rows)), len):
            output[:, index.to(output.device)] = attend(heads, index)
    return output.view(query.shape[0], *grid, -1)
