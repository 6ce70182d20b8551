"""The self-cascade: a picture grows level by level from the training size (FreeScale, "Tailored Self-Cascade
Upscaling").

Sizes are (height, width) in pixels and a latent cell is `cell` pixels a side. `scale` is the target size over
the size of level 0, one number for each axis; `factor` is the larger of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from fractions import Fraction

    from torch import Tensor

Size = tuple[int, int]

CELL = 8
"""Pixels of a latent cell's side where a caller names no other: the VAEs of Stable Diffusion 1.5, 2.1 and SDXL."""

SMALLEST_SIDE = 8
"""Latent cells of level 0's shorter side, at least: three halvings inside a UNet leave one."""

SMALLEST_GROWTH = 1.25
"""The least growth from level to level, unless all of it is less: a smaller rest is joined to the growth before it."""


class Codec(Protocol):
    """A VAE, for methods that work on pixels within a step. Latents are clean and in the UNet's scale."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return the picture (B, 3, H, W), about [-1, 1], of latents (B, C, h, w)."""

    def encode(self, image: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of a picture (B, 3, H, W) in [-1, 1]: the mode of the posterior."""


class CellCodec(Protocol):
    """Between the latents of a network and a VAE, where they have other scales from cell to cell."""

    def to_model(self, latents: Tensor) -> Tensor:
        """Return the network's latents (B, C, h, w) for those of the VAE."""

    def to_vae(self, latents: Tensor) -> Tensor:
        """Return the VAE's latents (B, C, h, w) for those of the network."""

    def by_cells(self, change: Callable[[Tensor], Tensor], difference: Tensor) -> Tensor:
        """Return what a linear `change` makes of a difference of the network's latents, made of the VAE's."""


@dataclass(frozen=True, eq=False)
class Level:
    """One level of the cascade and the tensors that all its steps share."""

    index: int
    size: Size  # pixels
    base_size: Size  # pixels, of level 0
    cell: int = CELL  # pixels of a latent cell's side: the factor of the model's VAE
    reference: Tensor | None = None  # (B, C, [F,] h, w): the level below, upscaled, clean; None at level 0
    noise: Tensor | None = None  # same shape, float32: the level's one restart noise; None at level 0
    anchor: Tensor | None = None  # (B, C, [F,] h0, w0): level 0's clean latents, for methods that ask for them
    detail_map: Tensor | None = None  # (1, 1, h, w): detail exponent for each cell; None: the method's scalar
    sizes: tuple[Size, ...] = ()  # pixels, of all levels, for methods that ask for them
    grows: bool = False  # whether levels follow level 0, for methods that ask for it
    trajectory: Tensor | None = None  # (B, N, C, h', w'): x0 of the last N steps of the level below, if asked for
    codec: Codec | None = None  # the VAE, above level 0, for methods that ask for it
    cell_codec: CellCodec | None = None  # where cells differ in scale, for methods that filter latents
    picture: Tensor | None = None  # (B, 3, H, W): the pixels that `reference` was encoded from, with the codec
    frames: int | None = None  # that the model was trained for; a longer video is attended in windows of as many
    frame_stride: int | None = None  # between such windows; None: a quarter of them
    thinning: tuple[float, float] | None = None  # of keys and values, (height, width) (`todo`); None: all of them

    @property
    def latent_hw(self) -> Size:
        """Latent cells (h, w)."""
        return self.size[0] // self.cell, self.size[1] // self.cell

    @property
    def base_hw(self) -> Size:
        """Latent cells (h, w) of level 0."""
        return self.base_size[0] // self.cell, self.base_size[1] // self.cell

    @property
    def scale(self) -> tuple[float, float]:
        """Size over level 0's size, (height, width)."""
        return self.size[0] / self.base_size[0], self.size[1] / self.base_size[1]

    @property
    def factor(self) -> float:
        """The larger of the two scales."""
        return max(self.scale)

    @property
    def is_base(self) -> bool:
        """Whether this is level 0, sampled from pure noise at the training size."""
        return self.index == 0


def cascade_sizes(size: Size, base_size: Size, *, growth: float = 2.0, cell: int = CELL) -> tuple[Size, ...]:
    """Return the sizes of all levels, from `base_size` to exactly `size`.

    Each level grows by `growth` until what is left is at most `SMALLEST_GROWTH * growth`, which the last
    level takes at once: factor 1.2 -> (1.2,), 2.4 -> (2.4,), 3 -> (2, 3), 4 -> (2, 4), 6 -> (2, 4, 6). Both
    axes advance by the same share of their own way (in the logarithm), and sizes in between are rounded to latent
    cells of `cell` pixels. A size no larger than the base has one level, itself. Raises `ValueError` for a growth of
    1 or less.
    """
    if growth <= 1:
        raise ValueError(f"growth is {growth}, allowed: above 1")
    factor = growth_between(size, base_size)
    if factor <= 1:
        return (size,)
    sizes = [base_size]
    grown = 1.0
    while factor / grown > SMALLEST_GROWTH * growth:
        grown *= growth
        share = math.log(grown) / math.log(factor)
        height, width = (
            round(base * (target / base) ** share / cell) * cell for base, target in zip(base_size, size, strict=True)
        )
        sizes.append((height, width))
    return (*sizes, size)


def growth_between(size: Size, base_size: Size) -> float:
    """Return how many times larger a size is on the axis that grows most."""
    return max(size[0] / base_size[0], size[1] / base_size[1])


def jump_sizes(size: Size, base_size: Size) -> tuple[Size, ...]:
    """Return the training size and the target, or the target alone where its area is no larger."""
    return (base_size, size) if size[0] * size[1] > base_size[0] * base_size[1] else (size,)


def sizes_between(
    size: Size, base_size: Size, shares: Iterable[float | Fraction], cell: int = CELL
) -> tuple[Size, ...]:
    """Return sizes whose sides have gone these shares of their way from `base_size` to `size`."""

    def side(base: int, target: int, share: float | Fraction) -> int:
        """Return one side, rounded up to latent cells."""
        return math.ceil((base + (target - base) * share) / cell) * cell

    (height, width), (base_height, base_width) = size, base_size
    return tuple((side(base_height, height, share), side(base_width, width, share)) for share in shares)


def base_size_for(size: Size, native: Size, *, cell: int = CELL) -> Size:
    """Return the size of level 0 for a target: its aspect and the area of `native`, the training size.

    Sides are rounded to latent cells of `cell` pixels. They are at least `SMALLEST_SIDE` cells, which changes the
    aspect of long pictures, and never exceed the target's. A target no larger in area than `native` is its own level 0.
    """
    height, width = size
    shrink = math.sqrt(native[0] * native[1] / (height * width))
    if shrink >= 1:
        return size

    def side(target: int) -> int:
        """Return one side of level 0, in pixels."""
        return min(target, max(SMALLEST_SIDE, round(target * shrink / cell)) * cell)

    return side(height), side(width)
