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
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from freescale.frequency import BlurBorder, blur_channels, blur_grid
from freescale.heads import Heads, attend, is_plain_self_attention, output_of, project, sdpa, sets_at_once
from freescale.portions import each
from freescale.unet_patches import record_token_grids, replace_self_attention, together, transformer_name
from freescale.windows import Grid, WindowBorder, Windows, phase_tokens, place_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from freescale.unet_patches import Patch, Processor

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

    def windows(self, name: str, grid: Grid) -> Windows:
        """Return the windows of the layer `name`."""
        jitter = self.jitter(name, grid) if self.jitter else None
        return place_windows(grid, self.scale, jitter=jitter, border=self.border)


def scale_fusion(fusion: Fusion) -> Patch:
    """Fuse scales in every spatial self-attention of a UNet."""
    grids: dict[str, Grid] = {}
    return together(
        record_token_grids(grids),
        replace_self_attention(lambda name, inner: ScaleFusion(inner, name, grids, fusion)),
    )


@dataclass(frozen=True, eq=False)
class ScaleFusion:
    """The attention processor: `inner` is the one it stands in for, and does what is not scale fusion."""

    inner: Processor
    name: str  # of the self-attention
    grids: Mapping[str, Grid]  # by name of its transformer, written before each forward
    fusion: Fusion

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
            windows = self.fusion.windows(self.name, self._grid(hidden_states))
            if not windows.is_whole:
                output = fuse_scales(attn, hidden_states, windows, self.fusion)
                output = output + hidden_states if attn.residual_connection else output
                return cast("Tensor", output / attn.rescale_output_factor)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)

    def _grid(self, hidden_states: Tensor) -> Grid:
        h, w = self.grids[transformer_name(self.name)]
        if h * w != hidden_states.shape[1]:
            raise ValueError(f"{self.name} has {hidden_states.shape[1]} tokens, allowed: its grid {h} x {w}")
        return h, w


def fuse_scales(attn: Any, hidden_states: Tensor, windows: Windows, fusion: Fusion) -> Tensor:
    """Return the fused output (B, h * w, C) of the layer `attn` for its normalised input (B, h * w, C)."""
    heads = project(attn, hidden_states)
    outside = project(attn, torch.zeros_like(hidden_states[:1, :1])) if fusion.border == "sink" else None
    scales = {
        "local": lambda: local_attention(heads, windows, outside, fusion.window_rows),
        "global": lambda: global_attention(heads, windows.grid, fusion.phases, fusion.window_rows),
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


def global_attention(heads: Heads, grid: Grid, phases: Grid = (1, 1), window_rows: int | None = None) -> Tensor:
    """Return a_G (B, h, w, C): attention over the whole grid, or within each of its interleaved phases."""
    query = heads.query
    if phases == (1, 1):
        return sdpa(heads).view(query.shape[0], *grid, -1)
    output = torch.empty_like(query).flatten(2)
    for group in phase_tokens(grid, phases):
        for index in each(torch.split(group, sets_at_once(heads, group.shape[1], window_rows)), len):
            output[:, index.to(output.device)] = attend(heads, index)
    return output.view(query.shape[0], *grid, -1)
