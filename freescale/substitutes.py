"""Modules that stand in for a network's own while a patch is on: they are classes of torch's, and a plan needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from freescale.portions import each

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class CalledConv(nn.Module):
    """Calls a function with a convolution and its input (`unet_patches.call_convs`)."""

    def __init__(self, conv: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.call = conv, call

    def forward(self, x: Tensor) -> Tensor:
        """Return what the call makes of x (B, C, h, w)."""
        return self.call(self.conv, x)


class Projected(nn.Module):
    """A projection of the prompt that is made once (`savings.TextCache`)."""

    def __init__(self, layer: nn.Module, project: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.project = layer, project

    def forward(self, embeds: Tensor) -> Tensor:
        """Return the projection, from the cache where it is stored."""
        return self.project(self.layer, embeds)


class Chunked(nn.Module):
    """A feed-forward on some tokens at a time (`savings.chunk_feed_forward`)."""

    def __init__(self, layer: nn.Module, tokens: int) -> None:
        super().__init__()
        self.layer, self.tokens = layer, tokens

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, as x."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self.tokens:
            whole: Tensor = self.layer(x)
            return whole
        output = torch.empty_like(rows)
        parts = list(zip(torch.split(rows, self.tokens), torch.split(output, self.tokens), strict=True))
        for part, into in each(parts, lambda pair: len(pair[0])):
            into.copy_(self.layer(part))
        return output.view(x.shape)


class Placed(nn.Module):
    """The patches of latents with positions of another table than the module's own (`backbones.sd3`)."""

    def __init__(self, embed: Any, table: Tensor) -> None:
        super().__init__()
        self.embed, self.table = embed, table

    def forward(self, latents: Tensor) -> Tensor:
        """Return tokens (B, h * w, D) of latents (B, C, 2 h, 2 w), for a table (1, h * w, D)."""
        tokens: Tensor = self.embed.proj(latents).flatten(2).transpose(1, 2)
        return (tokens + self.table).to(tokens.dtype)
