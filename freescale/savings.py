"""Exact savings inside a UNet that no method knows of: text projected once, feed-forward in parts.

`TextCache`: the keys and values of cross-attention are linear in the prompt's embeddings, which are the same at every
step, so they are computed at the first. Exact to the bit: the stored tensor is the one that would be computed again.

`chunk_feed_forward`: a feed-forward acts on single tokens and is the widest thing in a transformer block, eight
times its channels. Taken in parts, its memory does not grow with the picture. Exact to rounding: a product with fewer
rows may add up in another order.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from torch import Tensor

    from freescale.unet_patches import Patch


class TextCache:
    """Keys and values of constant embeddings, for one conditioning on one UNet; dropped with it.

    Only embeddings made by `rows` are remembered, told by their identity: a UNet that rearranges them first (video)
    finds nothing here and computes as ever. So does one that is being trained.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, Tensor] = {}
        self._projected: dict[tuple[int, int], Tensor] = {}
        self._places: list[_Place] = []

    def rows(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return `make()`, or what it returned when `key` was asked for first."""
        if key not in self._rows:
            self._rows[key] = make()
        return self._rows[key]

    def project(self, layer: nn.Module, embeds: Tensor) -> Tensor:
        """Return `layer(embeds)`, from memory where it was asked before. Not to be written to."""
        is_constant = any(embeds is held for held in self._rows.values())
        if torch.is_grad_enabled() or not is_constant:
            output: Tensor = layer(embeds)
            return output
        key = (id(layer), id(embeds))
        if key not in self._projected:
            self._projected[key] = layer(embeds)
        return self._projected[key]

    @contextmanager
    def patch(self, unet: nn.Module) -> Iterator[None]:
        """Have every cross-attention of `unet` ask here for its keys and values. The walk is done once."""
        if not self._places or not all(place.is_there for place in self._places):
            found = _places(unet, (".attn2.to_k", ".attn2.to_v"))
            self._places = [place._replace(instead=_Projected(place.module, self)) for place in found]
        with _replaced(self._places):
            yield


def chunk_feed_forward(tokens: int) -> Patch:
    """Run every feed-forward of a transformer block on at most so many tokens at a time."""
    if tokens < 1:
        raise ValueError(f"feed-forward tokens is {tokens}, allowed: 1 or more")

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        places = [place._replace(instead=_Chunked(place.module, tokens)) for place in _places(unet, (".ff",))]
        with _replaced(places):
            yield

    return patch


class _Place(NamedTuple):
    """A child of a module, and what is to stand in for it."""

    parent: nn.Module
    name: str
    module: nn.Module
    instead: nn.Module | None = None

    @property
    def is_there(self) -> bool:
        return self.parent._modules.get(self.name) is self.module


def _places(unet: nn.Module, endings: tuple[str, ...]) -> list[_Place]:
    """Return where modules of transformer blocks have names that end so."""
    names = [n for n, _ in unet.named_modules() if n.endswith(endings) and ".transformer_blocks." in n]
    split = [(unet.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    return [_Place(parent, name, getattr(parent, name)) for parent, name in split]


@contextmanager
def _replaced(places: Sequence[_Place]) -> Iterator[None]:
    """`setattr` of a module checks more than a step can wait for; its children are this dictionary."""
    try:
        for parent, name, _, instead in places:
            parent._modules[name] = instead
        yield
    finally:
        for parent, name, module, _ in places:
            parent._modules[name] = module


class _Projected(nn.Module):
    def __init__(self, layer: nn.Module, cache: TextCache) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(self, embeds: Tensor) -> Tensor:
        return self.cache.project(self.layer, embeds)


class _Chunked(nn.Module):
    def __init__(self, layer: nn.Module, tokens: int) -> None:
        super().__init__()
        self.layer, self.tokens = layer, tokens

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self.tokens:
            whole: Tensor = self.layer(x)
            return whole
        output = torch.empty_like(rows)
        for part, into in zip(torch.split(rows, self.tokens), torch.split(output, self.tokens), strict=True):
            into.copy_(self.layer(part))
        return output.view(x.shape)
