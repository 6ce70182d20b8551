"""Exact tiled VAE: decode or encode a picture of any size in bounded memory, equal to the untiled call to rounding.

Convolutions get a halo, GroupNorm the mean and biased variance of the whole map, each pixel counted once, and the
middle block's attention every key, by blocks. A map that fits the memory is kept whole on the host and made from the
one before it; from the last map that fits, tiles are computed anew: one pass over the picture for each norm that
follows, to collect its statistics, and one that emits the result. Between two kept maps the same holds. So `plan_tiles`
costs (norms + 1) passes a part, each pass running the part as far as that norm: with one kept map for each residual
block about 2.3 times the untiled work, with none kept over m blocks about m times.

The tiles of a pass need nothing of each other. Whoever calls may have them computed elsewhere (`Run`), in any order
and any number of times: what comes back is put together in one order, so that the result is the same to the bit.

Maps are (B, C, H, W); sizes are (height, width); tile edges are pixels of the picture.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freescale.vae.layers import Attend, Conv, Double, Fork, Half, Join, Layers, Norm, Region, Size, Span, layers_of
from freescale.vae.tile import BLOCK, Tile, TiledVae, reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from freescale.vae.tile import Read

    Run = Callable[[list[Tile], Tensor | None], Iterable[Tensor]]  # tiles, the map they are made from -> in order

MIB = 2**20


@dataclass(frozen=True)
class Part:
    """Layers start..stop-1, run tile by tile; the result is a kept map, except at the end of a decoder."""

    start: int
    stop: int
    in_place: bool  # the kept map is written over the one it is made from


class VaeMemoryError(ValueError):
    """So many bytes do not suffice for tiles; `needed` would."""

    def __init__(self, memory: int, tile: int, needed: int) -> None:
        super().__init__(
            f"vae_memory of {memory / MIB:.0f} MiB does not suffice for tiles of {tile} pixels at this size; "
            f"{math.ceil(needed / MIB)} MiB would"
        )
        self.needed = needed


@dataclass(frozen=True)
class TilePlan:
    """What is kept and what it takes: `bytes` at most beyond weights and result, `passes` over the whole picture."""

    parts: tuple[Part, ...]
    bytes: int
    passes: int


def decode_tiles(
    vae: Any, latents: Tensor, tile: int = 512, memory: int = 8 << 30, run: Run | None = None
) -> Iterator[tuple[Span, Span, Tensor]]:
    """Yield (rows, columns, tile) of the decoded picture, row by row, tiles (B, 3, rows, columns) on the CPU.

    `latents` (B, C, h, w) are as `vae.decode` takes them. Tiles start at multiples of `tile` pixels. `run` computes
    tiles, by default here. Raises `ValueError` before any work when `memory` bytes do not suffice, naming what would.
    """
    plan = plan_tiles(vae, "decoder", _size_of(latents), tile, memory, latents.shape[0])
    return Passes(TiledVae(vae, "decoder", _size_of(latents), reader(latents)), tile, run).emit(plan)


def encode_tiles(
    vae: Any, read: Read, size: Size, tile: int = 512, memory: int = 8 << 30, run: Run | None = None
) -> Tensor:
    """Return the moments (B, 2C, h, w) of a picture that is read by regions, on the CPU: its posterior's parameters.

    `read(((top, bottom), (left, right)))` gives (B, 3, rows, columns). Raises `ValueError` as `decode_tiles`.
    """
    plan = plan_tiles(vae, "encoder", size, tile, memory)
    passes = Passes(TiledVae(vae, "encoder", size, read), tile, run)
    tiles = list(passes.emit(plan))
    height, width = passes.network.sizes[-1]
    moments = tiles[0][2].new_empty(tiles[0][2].shape[0], passes.network.channels[-1], height, width)
    for rows, columns, values in tiles:
        moments[..., slice(*rows), slice(*columns)] = values
    return moments


def untiled_bytes(vae: Any, half: Half, size: Size, batch: int = 1) -> int:
    """Predicted bytes beyond the weights of the plain call; `size` is that of the input, as for `layers_of`."""
    network = layers_of(vae, half, size)
    whole = [((0, height), (0, width)) for height, width in network.sizes]
    return batch * _work(network, whole, 0) * _itemsize(vae)


def plan_tiles(vae: Any, half: Half, size: Size, tile: int, memory: int, batch: int = 1) -> TilePlan:
    """Choose the maps to keep: pure arithmetic on shapes; a VAE on the meta device will do.

    Raises `VaeMemoryError` when `memory` bytes do not suffice.
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
            if not inside and not isinstance(layer, Norm | Double):
                self.cuts.append(index + 1)
        self.end = len(layers)

    def plan(self, memory: int) -> TilePlan | None:
        """Keep the next map that fits, as long as one does; None when nothing fits."""
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
        """The least memory, to a MiB, for which there is a plan."""
        low, high = 0, MIB
        while self.plan(high) is None:
            low, high = high, 2 * high
        while high - low > MIB:
            middle = (low + high) // 2
            low, high = (low, middle) if self.plan(middle) is not None else (middle, high)
        return high

    def _ways(self, start: int) -> Iterator[Part]:
        """Parts that may follow, the shortest first: none runs past an attention, which is a part by itself."""
        for stop in self.cuts:
            if stop > start and stop <= self._forced(start):
                yield Part(start, stop, self._in_place(start, stop))

    def _forced(self, start: int) -> int:
        """Where a part from `start` must end at the latest."""
        layers = self.network.layers
        if start < self.end and isinstance(layers[start], Attend):
            return start + 1
        return next((i for i in range(start, self.end) if isinstance(layers[i], Attend)), self.end)

    def _onward(self, part: Part) -> int:
        """Bytes of the least that may follow a part: everything up to where it must end, its result not kept."""
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
        """Maps and workspace while a part runs."""
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
        """Two bands of tiles that are made and not yet written over what they were made from."""
        height, width = self.network.sizes[index]
        rows = min(2 * edge_of(self.network, index, self.tile), height)
        return self.network.channels[index] * rows * width * self.itemsize


def edge_of(network: Layers, index: int, tile: int) -> int:
    """The edge of a tile of the input of layer `index`, in its own cells: `tile` pixels of the picture."""
    largest = max(height for height, _ in network.sizes)
    return max(1, tile * network.sizes[index][0] // largest)


def _work(network: Layers, regions: list[Region], start: int) -> int:
    """Numbers held at once, at most, while layers make the last of `regions` from the first.

    A convolution holds input and output, and twice more what it pads and rearranges; a branch its block's input.
    """
    most, kept = 0, 0
    for offset in range(len(regions) - 1):
        layer, before, after = network.layers[start + offset], regions[offset], regions[offset + 1]
        inner = network.channels[start + offset] * _area(before)
        outer = network.channels[start + offset + 1] * _area(after)
        if isinstance(layer, Fork):
            kept = inner
        most = max(most, kept + (3 if isinstance(layer, Conv) else 1) * (inner + outer))
        if isinstance(layer, Join):
            kept = 0
    return most


class Passes:
    """One decode or encode: the statistics found so far, and what is made of tiles that `run` computes."""

    def __init__(self, tiled: TiledVae, tile: int, run: Run | None) -> None:
        self.tiled, self.network, self.tile = tiled, tiled.network, tile
        self.run = run or (lambda tiles, held: (tiled.compute(one, held) for one in tiles))
        self.affine: dict[int, tuple[Tensor, Tensor]] = {}

    def emit(self, plan: TilePlan) -> Iterator[tuple[Span, Span, Tensor]]:
        """Keep the maps of all parts but the last, then yield its tiles."""
        held: Tensor | None = None
        for part in plan.parts[:-1]:
            if isinstance(self.network.layers[part.start], Attend):
                assert held is not None
                held = self._attend(part, held)
            else:
                self._collect(part, held)
                held = self._keep(part, held)
        last = plan.parts[-1]
        self._collect(last, held)
        for (rows, columns), values in self._made(last, held):
            yield rows, columns, values

    def _made(self, part: Part, held: Tensor | None) -> Iterator[tuple[Region, Tensor]]:
        """The tiles of the result of a part, in order."""
        regions = list(self._regions(part.stop))
        affine = {index: self.affine[index] for index in self.network.norms(part.start, part.stop)}
        tiles = [Tile(part.start, part.stop, region, affine) for region in regions]
        yield from zip(regions, self.run(tiles, held), strict=True)

    def _collect(self, part: Part, held: Tensor | None) -> None:
        """The statistics of every norm in a part, in order: each needs those before it."""
        for index in self.network.norms(part.start, part.stop):
            norm = self.network.layers[index].module
            self.affine[index] = self._statistics(norm, part.start, index, held)

    def _statistics(
        self, norm: torch.nn.GroupNorm, start: int, stop: int, held: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C, 1, 1) that GroupNorm amounts to over the whole map that layer `stop` gets."""
        regions = list(self._regions(stop))
        affine = {index: self.affine[index] for index in self.network.norms(start, stop)}
        tiles = [Tile(start, stop, region, affine, norm.num_groups) for region in regions]
        count, mean, spread = 0, torch.zeros(()), torch.zeros(())
        for region, found in zip(regions, self.run(tiles, held), strict=True):
            here = _area(region) * (norm.num_channels // norm.num_groups)
            count, mean, spread = _merged((count, mean, spread), (here, found[0], found[1]))
        rate = (spread / count + norm.eps).rsqrt()
        per_group = norm.num_channels // norm.num_groups
        scale, centre = (x.repeat_interleave(per_group, dim=1) for x in (rate, mean))
        if norm.affine:
            scale = scale * norm.weight.detach().double().cpu()
        shift = -centre * scale + (norm.bias.detach().double().cpu() if norm.affine else 0.0)
        return scale.to(self.tiled.dtype)[..., None, None], shift.to(self.tiled.dtype)[..., None, None]

    def _keep(self, part: Part, held: Tensor | None) -> Tensor:
        """The whole map after a part. In place, a band of tiles is written once the next one is made."""
        out, pending = held if part.in_place else None, list[tuple[Region, Tensor]]()
        for (rows, columns), values in self._made(part, held):
            if out is None:
                channels, size = self.network.channels[part.stop], self.network.sizes[part.stop]
                out = values.new_empty(values.shape[0], channels, *size)
            if not part.in_place:
                _put(out, (rows, columns), values)
                continue
            while pending and pending[0][0][0][1] < rows[0]:
                _put(out, *pending.pop(0))
            pending.append(((rows, columns), values))
        assert out is not None
        for region, values in pending:
            _put(out, region, values)
        return out

    def _attend(self, part: Part, held: Tensor) -> Tensor:
        """Attention by blocks of queries over all keys; keys and values are made anew for each block of queries.

        A block is written over its queries once it is no key any more: at once where a device has a copy of the map,
        else after the last one, and until then it is in a file.
        """
        start = part.start
        affine = {start: self._statistics(self.network.layers[start].module.group_norm, start, start, held)}
        rows = held.flatten(2)
        spans = [(first, min(first + BLOCK, rows.shape[-1])) for first in range(0, rows.shape[-1], BLOCK)]
        made = self.run([Tile(start, part.stop, ((0, 1), span), affine) for span in spans], held)
        made = made if self.tiled.has_copy else _spooled(made)
        for span, values in zip(spans, made, strict=True):
            rows[..., slice(*span)] = values
        self.tiled.forget()
        return held

    def _regions(self, index: int) -> Iterator[Region]:
        """The tiles that cover the input of layer `index`, row by row, each point once."""
        edge, (height, width) = edge_of(self.network, index, self.tile), self.network.sizes[index]
        for top in range(0, height, edge):
            for left in range(0, width, edge):
                yield (top, min(top + edge, height)), (left, min(left + edge, width))


def _merged(one: tuple[int, Tensor, Tensor], other: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of two sets together (Chan, Golub and LeVeque)."""
    count, shift = one[0] + other[0], other[1] - one[1]
    mean = one[1] + shift * (other[0] / count)
    return count, mean, one[2] + other[2] + shift.square() * (one[0] * other[0] / count)


def _spooled(values: Iterable[Tensor]) -> Iterator[Tensor]:
    """Take all of `values`, then give them back in order; meanwhile they are in a file without a name (`TMPDIR`)."""
    with tempfile.TemporaryFile() as file:
        shapes = list[tuple[torch.Size, torch.dtype]]()
        for one in values:
            shapes.append((one.shape, one.dtype))
            file.write(one.contiguous().view(torch.uint8).numpy().tobytes())
        file.seek(0)
        for shape, dtype in shapes:
            yield torch.frombuffer(bytearray(file.read(shape.numel() * dtype.itemsize)), dtype=dtype).view(shape)


def _put(out: Tensor, region: Region, values: Tensor) -> None:
    out[..., slice(*region[0]), slice(*region[1])] = values


def _middle(edge: int, length: int) -> Span:
    first = max((length - edge) // 2, 0)
    return first, min(first + edge, length)


def _area(region: Region) -> int:
    (top, bottom), (left, right) = region
    return (bottom - top) * (right - left)


def _size_of(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _itemsize(vae: Any) -> int:
    return int(next(vae.parameters()).element_size())
