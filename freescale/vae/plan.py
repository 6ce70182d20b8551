"""Which maps of a tiled decode or encode are kept, and what that takes: arithmetic on shapes.

A map that fits the memory is kept whole on the host and made from the one before it; from the last map that fits, tiles
are computed anew: one pass over the picture for each norm that follows, to collect its statistics, and one that makes
the result. Between two kept maps the same holds. So a plan costs (norms + 1) passes a part, each pass running the part
as far as that norm: with one kept map for each residual block about 2.3 times the untiled work, with none kept over m
blocks about m times.

Sizes are (height, width); tile edges are pixels of the picture; memory is bytes beyond the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freescale.vae.layers import Attend, Conv, Double, Fork, Join, Norm, PixelNorm, area, layers_of
from freescale.vae.tile import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from freescale.vae.layers import Half, Layers, Region, Size, Span

MIB = 2**20


@dataclass(frozen=True)
class Part:
    """Layers start..stop-1, run tile by tile; the result is a kept map, except that of the last part."""

    start: int
    stop: int
    in_place: bool  # the kept map is written over the one it is made from


class VaeMemoryError(ValueError):
    """The memory allowed does not suffice for tiles; `needed` bytes would."""

    def __init__(self, memory: int, tile: int, needed: int) -> None:
        super().__init__(
            f"vae_memory of {memory / MIB:.0f} MiB does not suffice for tiles of {tile} pixels at this size; "
            f"{math.ceil(needed / MIB)} MiB would"
        )
        self.needed = needed


@dataclass(frozen=True)
class TilePlan:
    """Which maps are kept, and the cost: `bytes` at most beyond weights and result, `passes` over the whole picture."""

    parts: tuple[Part, ...]
    bytes: int
    passes: int


def untiled_bytes(vae: Any, half: Half, size: Size, batch: int = 1) -> int:
    """Return the predicted bytes, beyond the weights, of the untiled call for an input of `size` (`layers_of`)."""
    network = layers_of(vae, half, size)
    whole = [((0, height), (0, width)) for height, width in network.sizes]
    return batch * _work(network, whole, 0) * _itemsize(vae)


def plan_tiles(vae: Any, half: Half, size: Size, tile: int, memory: int, batch: int = 1) -> TilePlan:
    """Return which maps to keep for an input of `size` and tiles of `tile` pixels; the VAE may be on the meta device.

    Raises `VaeMemoryError` where `memory` bytes do not suffice.
    """
    planner = _Planner(layers_of(vae, half, size), tile, batch * _itemsize(vae))
    plan = planner.plan(memory)
    if plan is None:
        raise VaeMemoryError(memory, tile, planner.smallest())
    return plan


class _Planner:
    def __init__(self, network: Layers, tile: int, itemsize: int) -> None:
        self.network, self.tile, self.itemsize = network, tile, itemsize
        layers, inside = network.layers, False
        self.cuts = []  # where a map may be kept: after a convolution or a block, not inside one
        for index, layer in enumerate(layers):
            inside = isinstance(layer, Fork) or (inside and not isinstance(layer, Join))
            if not inside and not isinstance(layer, Norm | PixelNorm | Double):
                self.cuts.append(index + 1)
        self.end = len(layers)

    def plan(self, memory: int) -> TilePlan | None:
        """Return the plan that always keeps the next map that fits; None where a part does not fit."""
        parts, at, most, passes = list[Part](), 0, 0, 0
        while at < self.end:
            found = next((part for part in self._ways(at) if self._bytes(part) <= memory >= self._onward(part)), None)
            if found is None:
                return None
            parts.append(found)
            most = max(most, self._bytes(found))
            passes += len(self.network.norms(found.start, found.stop)) + 1
            at = found.stop
        return TilePlan(tuple(parts), most, passes)

    def smallest(self) -> int:
        """Return the least memory, to a MiB, for which there is a plan."""
        low, high = 0, MIB
        while self.plan(high) is None:
            low, high = high, 2 * high
        while high - low > MIB:
            middle = (low + high) // 2
            low, high = (low, middle) if self.plan(middle) is not None else (middle, high)
        return high

    def _ways(self, start: int) -> Iterator[Part]:
        """Yield the parts that may follow, the shortest first; an attention is a part by itself."""
        for stop in self.cuts:
            if stop > start and stop <= self._forced(start):
                yield Part(start, stop, self._in_place(start, stop))

    def _forced(self, start: int) -> int:
        """Return where a part from `start` must end at the latest."""
        layers = self.network.layers
        if start < self.end and isinstance(layers[start], Attend):
            return start + 1
        return next((i for i in range(start, self.end) if isinstance(layers[i], Attend)), self.end)

    def _onward(self, part: Part) -> int:
        """Return the bytes of the cheapest continuation of a part: to its forced end, no map kept on the way."""
        if part.stop == self.end:
            return 0
        stop = self._forced(part.stop)
        return self._bytes(Part(part.stop, stop, self._in_place(part.stop, stop)))

    def _in_place(self, start: int, stop: int) -> bool:
        network = self.network
        if start == 0 or (network.sizes[start], network.channels[start]) != (
            network.sizes[stop],
            network.channels[stop],
        ):
            return False
        if isinstance(network.layers[start], Attend):
            return True  # the keys come from a copy on the device or, where there is none, blocks wait in a file
        return self._halo(start, stop) <= edge_of(network, stop, self.tile)

    def _halo(self, start: int, stop: int) -> int:
        middle = self.network.sizes[stop][0] // 2
        (first, _), _ = self.network.back(start, stop, ((middle, middle + 1), (0, 1)))[0]
        return middle - first

    def _bytes(self, part: Part) -> int:
        """Return the bytes of maps and workspace while a part runs."""
        network = self.network
        kept = self._map(part.start) if part.start else 0
        if part.stop < self.end:
            kept += self._pending(part.stop) if part.in_place else self._map(part.stop)
        if isinstance(network.layers[part.start], Attend):
            height, width = network.sizes[part.start]
            block = min(BLOCK, height * width)
            return kept + block * (7 * network.channels[part.start] + 3 * block) * self.itemsize
        edge = edge_of(network, part.stop, self.tile)
        height, width = network.sizes[part.stop]
        region = (_middle(edge, height), _middle(edge, width))
        return kept + _work(network, network.back(part.start, part.stop, region), part.start) * self.itemsize

    def _map(self, index: int) -> int:
        height, width = self.network.sizes[index]
        return self.network.channels[index] * height * width * self.itemsize

    def _pending(self, index: int) -> int:
        """Return the bytes of two bands of tiles that are computed and not yet written over their input."""
        height, width = self.network.sizes[index]
        rows = min(2 * edge_of(self.network, index, self.tile), height)
        return self.network.channels[index] * rows * width * self.itemsize


def edge_of(network: Layers, index: int, tile: int) -> int:
    """Return the edge of a tile in cells of the input of layer `index`: `tile` pixels of the picture."""
    largest = max(height for height, _ in network.sizes)
    return max(1, tile * network.sizes[index][0] // largest)


def _work(network: Layers, regions: list[Region], start: int) -> int:
    """Return how many numbers are held at once, at most, while layers make the last of `regions` from the first.

    A convolution holds input and output, and twice more what it pads and rearranges; a branch its block's input.
    """
    most, kept = 0, 0
    for offset in range(len(regions) - 1):
        layer, before, after = network.layers[start + offset], regions[offset], regions[offset + 1]
        inner = network.channels[start + offset] * area(before)
        outer = network.channels[start + offset + 1] * area(after)
        if isinstance(layer, Fork):
            kept = inner
        most = max(most, kept + (3 if isinstance(layer, Conv) else 1) * (inner + outer))
        if isinstance(layer, Join):
            kept = 0
    return most


def _middle(edge: int, length: int) -> Span:
    first = max((length - edge) // 2, 0)
    return first, min(first + edge, length)


def _itemsize(vae: Any) -> int:
    return int(next(vae.parameters()).element_size())
