"""Exact tiled VAE: decode or encode a picture of any size in bounded memory, equal to the untiled call to rounding.

Convolutions get a halo, GroupNorm the mean and biased variance of the whole map, each pixel counted once, and the
middle block's attention every key, by blocks. `plan` says which maps are kept whole on the host; each part between two
of them is computed in passes over its tiles.

The tiles of a pass do not depend on each other. The caller may have them computed elsewhere (`Run`), in any order and
any number of times: the results are put together in one order, so every bit is the same.

Maps are (B, C, H, W); sizes are (height, width); tile edges are pixels of the picture.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import torch

from freescale.vae.layers import Attend, Region, area
from freescale.vae.plan import edge_of, plan_tiles
from freescale.vae.tile import BLOCK, Tile, TiledVae, reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from freescale.vae.layers import Size, Span
    from freescale.vae.plan import Part, TilePlan
    from freescale.vae.tile import Read

    Run = Callable[[list[Tile], Tensor | None], Iterable[Tensor]]  # tiles, the map they are made from -> in order


def decode_tiles(
    vae: Any, latents: Tensor, tile: int = 512, memory: int = 8 << 30, run: Run | None = None
) -> Iterator[tuple[Span, Span, Tensor]]:
    """Yield (rows, columns, tile) of the decoded picture, row by row, tiles (B, 3, rows, columns) on the CPU.

    `latents` (B, C, h, w) are as `vae.decode` takes them. Tiles start at multiples of `tile` pixels. `run` computes
    tiles; by default this process does. Raises `VaeMemoryError` before any work where `memory` bytes do not suffice.
    """
    plan = plan_tiles(vae, "decoder", _size_of(latents), tile, memory, latents.shape[0])
    return Passes(TiledVae(vae, "decoder", _size_of(latents), reader(latents)), tile, run).emit(plan)


def encode_tiles(
    vae: Any, read: Read, size: Size, tile: int = 512, memory: int = 8 << 30, run: Run | None = None
) -> Tensor:
    """Return the moments (B, 2C, h, w) of a picture that is read by regions, on the CPU: its posterior's parameters.

    `read(((top, bottom), (left, right)))` gives (B, 3, rows, columns). Raises `VaeMemoryError` as `decode_tiles` does.
    """
    plan = plan_tiles(vae, "encoder", size, tile, memory)
    passes = Passes(TiledVae(vae, "encoder", size, read), tile, run)
    tiles = list(passes.emit(plan))
    height, width = passes.network.sizes[-1]
    moments = tiles[0][2].new_empty(tiles[0][2].shape[0], passes.network.channels[-1], height, width)
    for rows, columns, values in tiles:
        moments[..., slice(*rows), slice(*columns)] = values
    return moments


class Passes:
    """One decode or encode: it holds the statistics found so far, and puts together the tiles that `run` computes."""

    def __init__(self, tiled: TiledVae, tile: int, run: Run | None) -> None:
        self.tiled, self.network, self.tile = tiled, tiled.network, tile
        self.run = run or (lambda tiles, held: (tiled.compute(one, held) for one in tiles))
        self.affine: dict[int, tuple[Tensor, Tensor]] = {}

    def emit(self, plan: TilePlan) -> Iterator[tuple[Span, Span, Tensor]]:
        """Compute and keep the maps of all parts but the last, then yield (rows, columns, values) of its tiles."""
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
        """Yield the tiles of the result of a part with their regions, in order."""
        regions = list(self._regions(part.stop))
        affine = {index: self.affine[index] for index in self.network.norms(part.start, part.stop)}
        tiles = [Tile(part.start, part.stop, region, affine) for region in regions]
        yield from zip(regions, self.run(tiles, held), strict=True)

    def _collect(self, part: Part, held: Tensor | None) -> None:
        """Find the statistics of every norm in a part, in order: each needs those before it."""
        for index in self.network.norms(part.start, part.stop):
            norm = self.network.layers[index].module
            self.affine[index] = self._statistics(norm, part.start, index, held)

    def _statistics(
        self, norm: torch.nn.GroupNorm, start: int, stop: int, held: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scale and shift (B, C, 1, 1) of a GroupNorm over the whole map that layer `stop` gets."""
        regions = list(self._regions(stop))
        affine = {index: self.affine[index] for index in self.network.norms(start, stop)}
        tiles = [Tile(start, stop, region, affine, norm.num_groups) for region in regions]
        count, mean, spread = 0, torch.zeros(()), torch.zeros(())
        for region, found in zip(regions, self.run(tiles, held), strict=True):
            here = area(region) * (norm.num_channels // norm.num_groups)
            count, mean, spread = _merged((count, mean, spread), (here, found[0], found[1]))
        rate = (spread / count + norm.eps).rsqrt()
        per_group = norm.num_channels // norm.num_groups
        scale, centre = (x.repeat_interleave(per_group, dim=1) for x in (rate, mean))
        if norm.affine:
            scale = scale * norm.weight.detach().double().cpu()
        shift = -centre * scale + (norm.bias.detach().double().cpu() if norm.affine else 0.0)
        return scale.to(self.tiled.dtype)[..., None, None], shift.to(self.tiled.dtype)[..., None, None]

    def _keep(self, part: Part, held: Tensor | None) -> Tensor:
        """Return the whole map after a part. In place, a band of tiles is written once the next one is computed."""
        out = held if part.in_place else None
        pending: list[tuple[Region, Tensor]] = []
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
        """Return the map with the attention applied, by blocks of queries over all keys.

        Keys and values are computed anew for each block of queries. A block's output replaces its queries when they
        are needed as keys no more: at once where a device has a copy of the map, else after the last block, and until
        then it is in a file.
        """
        start = part.start
        layer, affine = self.network.layers[start], {}
        if layer.pixel_norm is None:
            affine = {start: self._statistics(layer.module.group_norm, start, start, held)}
        rows = held.flatten(2)
        spans = [(first, min(first + BLOCK, rows.shape[-1])) for first in range(0, rows.shape[-1], BLOCK)]
        made = self.run([Tile(start, part.stop, ((0, 1), span), affine) for span in spans], held)
        made = made if self.tiled.has_copy else _spooled(made)
        for span, values in zip(spans, made, strict=True):
            rows[..., slice(*span)] = values
        self.tiled.forget()
        return held

    def _regions(self, index: int) -> Iterator[Region]:
        """Yield the regions that cover the input of layer `index`, row by row, each point once."""
        edge, (height, width) = edge_of(self.network, index, self.tile), self.network.sizes[index]
        for top in range(0, height, edge):
            for left in range(0, width, edge):
                yield (top, min(top + edge, height)), (left, min(left + edge, width))


def _merged(one: tuple[int, Tensor, Tensor], other: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    """Return count, mean and sum of squared deviations of two sets together (Chan, Golub and LeVeque, 1983)."""
    count, shift = one[0] + other[0], other[1] - one[1]
    mean = one[1] + shift * (other[0] / count)
    return count, mean, one[2] + other[2] + shift.square() * (one[0] * other[0] / count)


def _spooled(values: Iterable[Tensor]) -> Iterator[Tensor]:
    """Take all of `values` first, then yield them in order; until then they are in a temporary file (`TMPDIR`)."""
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


def _size_of(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]
