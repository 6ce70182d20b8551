"""Structure guidance and latent frequency mixing (ScaleDiff, arXiv:2510.25818): one low band, taken from the reference.

Few steps from much noise keep the picture when the low frequencies of every prediction are those of the enlarged
picture. The band is what a smaller grid can hold. Three filters take it:

* `bilinear`: down to the grid with antialiasing, and up again, as released. It is no projector: taken twice it is
  narrower, so guidance of weight 1 does not quite lock.
* `aliased`: the same without antialiasing, as FreCaS has it.
* `box`: the lowest frequencies of the cosine transform of each axis, as many as the grid has cells. It is a projector,
  and it does not wrap round at borders as the Fourier transform would.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from freescale.vae.codec import by_cells

if TYPE_CHECKING:
    from torch import Tensor

    from freescale.cascade import CellCodec
    from freescale.windows import Grid

BandFilter = Literal["bilinear", "aliased", "box"]


def low_band(x: Tensor, grid: Grid, kind: BandFilter = "bilinear") -> Tensor:
    """Return the part of x (B, C, h, w) that a smaller `grid` (rows, columns) can hold, in its shape and dtype.

    A side of the grid that is not smaller than that of x keeps all of it.
    """
    h, w = x.shape[-2:]
    grid = min(grid[0], h), min(grid[1], w)
    if grid == (h, w):
        return x
    if kind == "box":
        rows, columns = (band_matrix(n, kept, x.dtype, x.device) for n, kept in zip((h, w), grid, strict=True))
        return rows @ x @ columns
    small = F.interpolate(x, size=grid, mode="bilinear", align_corners=False, antialias=kind == "bilinear")
    return F.interpolate(small, size=(h, w), mode="bilinear", align_corners=False)


@lru_cache(maxsize=32)
def band_matrix(n: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the symmetric matrix (n, n) that keeps the `kept` lowest cosines of an axis. Shared: not to be written to.

    It is the product of the orthonormal DCT-II, cut after `kept` rows, with its transpose.
    """
    frequency, cell = torch.arange(kept, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    cosines = math.sqrt(2.0 / n) * torch.cos(math.pi / n * frequency * (cell + 0.5))
    cosines[0] /= math.sqrt(2.0)
    return (cosines.T @ cosines).to(device, dtype)


def guide_structure(
    noise_pred: Tensor,
    latents: Tensor,
    sigma: float,
    reference: Tensor,
    weight: float,
    grid: Grid,
    kind: BandFilter,
    codec: CellCodec | None = None,
) -> Tensor:
    """Return the noise prediction (B, C, h, w) whose x0 has the low band of `reference` by a share `weight`, 0 to 1.

    x0 becomes x0 + weight * (L(reference) - L(x0)), with VE latents = x0 + sigma * noise. Weight 0 changes no bit. With
    a codec the band is that of the VAE's latents.
    """
    if weight == 0.0:
        return noise_pred
    x0 = latents - sigma * noise_pred
    pull = by_cells(codec, partial(low_band, grid=grid, kind=kind), reference.to(x0) - x0)
    return noise_pred - (weight / sigma) * pull


def mix_bands(picture: Tensor, latents: Tensor, grid: Grid, kind: BandFilter, codec: CellCodec | None = None) -> Tensor:
    """Return latents with the low band of `latents` and the high band of `picture`, both (B, C, h, w).

    Enlarged latents keep colours and composition, the encoded enlargement of a picture has the edges.
    """
    return picture + by_cells(codec, partial(low_band, grid=grid, kind=kind), latents - picture)
