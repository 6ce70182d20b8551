"""One tile of a VAE's encoder or decoder, computed by itself; a pass of `freescale/vae/passes.py` is made of them.

A tile is a few numbers and the statistics known so far. With the same input it gives the same bits on every machine of
one kind, however often it is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from freescale.gradients import without_gradients
from freescale.vae.layers import Attend, Fork, Half, Join, Norm, Region, Size, layers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Read = Callable[[Region], Tensor]

BLOCK = 2048  # queries, and keys, whose scores are held at once in the attention: 16 MiB in float32


@dataclass(frozen=True)
class Tile:
    """One computation of a pass: layers start..stop-1 at a region of the output of the last.

    It starts from the input or, where a map is kept before `start`, from that map. `affine` has the scale and shift of
    each norm so far, by its index. Where `groups`, the groups of the norm that follows, is not 0, the mean and spread
    of the values are computed in place of the values. The region of an attention is a span of queries in the flattened
    map.
    """

    start: int
    stop: int
    region: Region
    affine: Mapping[int, tuple[Tensor, Tensor]]
    groups: int = 0


class TiledVae:
    """The encoder or decoder of a VAE over one input, of which `read` gives regions; it computes any tile by itself."""

    def __init__(self, vae: Any, half: Half, size: Size, read: Read) -> None:
        weight = next(vae.parameters())
        self.network, self.read, self.device, self.dtype = layers_of(vae, half, size), read, weight.device, weight.dtype
        self._whole: tuple[Tensor, Tensor] | None = None  # the map of the last attention, on the host and on the device

    @without_gradients
    def compute(self, tile: Tile, held: Tensor | None = None) -> Tensor:
        """Return a tile's values (B, C, rows, columns) or, with `groups`, (mean and spread, B, groups); on the CPU.

        `held` is the map that is kept before `start`; None: the tile starts from the input.
        """
        layer = self.network.layers[tile.start]
        if isinstance(layer, Attend) and tile.stop > tile.start:
            assert held is not None
            return _attended(layer.module, self._flat(held), slice(*tile.region[1]), self._norm_of(tile, layer)).cpu()
        self.forget()
        values = self._values(tile, self.read if held is None else reader(held))
        return _moments(values, tile.groups) if tile.groups else values.cpu()

    @property
    def has_copy(self) -> bool:
        """Whether an attention has a copy of its map on a device, so that the host's may be written over."""
        return bool(self.device.type != "cpu")

    def forget(self) -> None:
        """Free the copy that the last attention left on the device."""
        self._whole = None

    def to_device(self, x: Tensor) -> Tensor:
        """Return x on the device and in the dtype of the weights."""
        return x.to(self.device, self.dtype)

    def _flat(self, held: Tensor) -> Tensor:
        if self._whole is None or self._whole[0] is not held:
            self._whole = (held, self.to_device(held).flatten(2))
        return self._whole[1]

    def _norm_of(self, tile: Tile, layer: Attend) -> Callable[[Tensor], Tensor]:
        """Return what normalises parts (B, C, tokens) of an attention's map."""
        if layer.pixel_norm is not None:
            return layer.pixel_norm
        scale, shift = (self.to_device(x).flatten(2) for x in tile.affine[tile.start])
        return lambda x: (x * scale).add_(shift)

    def _values(self, tile: Tile, read: Read) -> Tensor:
        regions = self.network.back(tile.start, tile.stop, tile.region)
        x = self.to_device(read(regions[0]))
        kept: Tensor | None = None
        kept_at = regions[0]
        for index, here, there in zip(range(tile.start, tile.stop), regions, regions[1:], strict=False):
            layer = self.network.layers[index]
            if isinstance(layer, Fork):
                kept, kept_at = x, here
            elif isinstance(layer, Norm):
                scale, shift = (self.to_device(y) for y in tile.affine[index])
                x = F.silu((x * scale).add_(shift), inplace=True)
            elif isinstance(layer, Join):
                assert kept is not None
                x, kept = layer.apply(x, _cut(kept, kept_at, there)), None
            else:
                x = layer.apply(x, there, self.network.sizes[index])
        return x


def _attended(attention: Any, flat: Tensor, block: slice, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Return an attention's output (B, C, n) for a block of the map (B, C, N): softmax over all keys, by blocks."""
    heads = attention.heads

    def split(tokens: Tensor) -> Tensor:
        """Return (B, heads, tokens, head_dim)."""
        return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)

    def tokens(at: slice) -> Tensor:
        """Return the normalised tokens (B, tokens, C) of a span of the map."""
        return norm(flat[..., at]).transpose(1, 2)

    query = split(attention.to_q(tokens(block)))
    query = query * query.shape[-1] ** -0.5
    largest = query.new_full((*query.shape[:-1], 1), -math.inf)
    total, mixed = torch.zeros_like(largest), torch.zeros_like(query)
    for first in range(0, flat.shape[-1], BLOCK):
        other = tokens(slice(first, first + BLOCK))
        scores = query @ split(attention.to_k(other)).transpose(-1, -2)
        larger = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights, faded = scores.sub_(larger).exp_(), (largest - larger).exp_()
        total = total * faded + weights.sum(-1, keepdim=True)
        mixed = mixed * faded + weights @ split(attention.to_v(other))
        largest = larger
    joined = (mixed / total).transpose(1, 2).flatten(2)
    out: Tensor = (attention.to_out[0](joined).transpose(1, 2) + flat[..., block]) / attention.rescale_output_factor
    return out


def _moments(values: Tensor, groups: int) -> Tensor:
    """Return mean and sum of squared deviations of one tile, (2, B, groups), in float64 on the CPU."""
    mean: list[Tensor] = []
    spread: list[Tensor] = []
    held = values.cpu() if values.device.type == "mps" else values  # MPS has no float64
    for group in held.flatten(2).chunk(groups, dim=1):  # one at a time: float64 takes twice the room
        variance, middle = torch.var_mean(group.double(), dim=(1, 2), correction=0)
        mean.append(middle)
        spread.append(variance)
    count = values[0].numel() // groups
    return torch.stack((torch.stack(mean, dim=1).cpu(), torch.stack(spread, dim=1).cpu() * count))


def reader(held: Tensor) -> Read:
    """Return the function that gives regions of a map that is in memory."""
    return lambda region: held[..., slice(*region[0]), slice(*region[1])]


def _cut(x: Tensor, at: Region, wanted: Region) -> Tensor:
    """Return the region `wanted` of a tile x that lies at `at`."""
    rows, columns = (slice(w[0] - a[0], w[1] - a[0]) for a, w in zip(at, wanted, strict=True))
    return x[..., rows, columns]
