"""Exact savings inside a UNet, whatever the method: the prompt projected once, the feed-forward computed in parts.

`TextCache`: the keys and values of cross-attention are linear in the prompt's embeddings, which do not change from
step to step, so they are computed at the first step only. Exact to the bit: the stored tensor is the one that would
be computed again.

`chunk_feed_forward`: a feed-forward acts on single tokens and is the widest layer of a transformer block, eight times
its channels. Computed in parts, its memory does not grow with the picture. Exact to rounding: a matrix product with
fewer rows may add up in another order.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from freescale.unet_patches import Child, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from torch import Tensor, nn

    from freescale.unet_patches import Patch


class TextCache:
    """The keys and values of constant embeddings, for one conditioning on one UNet.

    Only projections of embeddings that `rows` made are stored, found by the identity of the tensor. A UNet that
    rearranges its embeddings first (video) finds nothing here and computes them at every step; so does a UNet in
    training.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, Tensor] = {}
        self._projected: dict[tuple[int, int], Tensor] = {}
        self._children: list[Child] = []

    def rows(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return `make()`, called the first time that `key` is asked for."""
        if key not in self._rows:
            self._rows[key] = make()
        return self._rows[key]

    def project(self, layer: nn.Module, embeds: Tensor) -> Tensor:
        """Return `layer(embeds)`, stored at the first call. Do not write to it."""
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
        """Take the keys and values of every cross-attention of `unet` from here; its modules are searched once."""
        from freescale.substitutes import Projected  # a class of torch's

        if not self._children or not all(child.is_present for child in self._children):
            found = _children(unet, (".attn2.to_k", ".attn2.to_v"))
            self._children = [child._replace(substitute=Projected(child.module, self.project)) for child in found]
        with replaced(self._children):
            yield


def chunk_feed_forward(tokens: int) -> Patch:
    """Run the feed-forward of every transformer block on at most `tokens` tokens at a time.

    Raises `ValueError` for less than 1 token.
    """
    if tokens < 1:
        raise ValueError(f"feed-forward tokens is {tokens}, allowed: 1 or more")

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        """Stand in for each feed-forward of `unet`."""
        from freescale.substitutes import Chunked  # a class of torch's

        found = _children(unet, (".ff", ".ffn"))
        children = [child._replace(substitute=Chunked(child.module, tokens)) for child in found]
        with replaced(children):
            yield

    return patch


def _children(unet: nn.Module, endings: tuple[str, ...]) -> list[Child]:
    """Return the modules of transformer blocks whose names end with one of `endings`."""
    found = (name for name, _ in unet.named_modules() if name.endswith(endings))
    names = [name for name in found if ".transformer_blocks." in name or name.endswith(".ffn")]  # of Wan
    split = [(unet.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    return [Child(parent, name, getattr(parent, name)) for parent, name in split]
