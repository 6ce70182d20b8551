"""Between the latents that a VAE encodes and those that a network was trained on: one scale, shift or table a VAE.

What a configuration says (diffusers' names): `scaling_factor` alone for the VAEs of Stable Diffusion, with
`shift_factor` for that of FLUX.1, or `latents_mean` and `latents_std` of every channel. The VAE of FLUX.2 holds
statistics of patches of cells, its batch norm `bn`. Latents have their channels on axis 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from freescale.enlarge import enlarge_latents

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from freescale.cascade import CellCodec, Size
    from freescale.enlarge import Interpolation


@dataclass(frozen=True)
class Codec:
    """The latents of a network are (z - mean) / std * scale, for latents z of the VAE."""

    scale: float = 1.0
    mean: tuple[float, ...] = ()  # one for all channels, or one each; empty: 0
    std: tuple[float, ...] = ()  # empty: 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the codec of a VAE's configuration."""
        means, deviations = config.get("latents_mean"), config.get("latents_std")
        if means is None:
            shift = config.get("shift_factor") or 0.0
            means = (shift,) if shift else ()
        return cls(float(config.get("scaling_factor") or 1.0), tuple(means), tuple(deviations or ()))

    def to_model(self, latents: Tensor) -> Tensor:
        """Return the network's latents for those of the VAE, (B, C, ...)."""
        if self.mean:
            latents = latents - _along(self.mean, latents)
        if self.std:
            latents = latents / _along(self.std, latents)
        return latents * self.scale

    def to_vae(self, latents: Tensor) -> Tensor:
        """Return the VAE's latents for those of the network, (B, C, ...)."""
        latents = latents / self.scale
        if self.std:
            latents = latents * _along(self.std, latents)
        return latents + _along(self.mean, latents) if self.mean else latents


@dataclass(frozen=True, eq=False)
class PatchCodec:
    """The latents of a network are (z - mean) / std by channel and by place in a patch (C, p, p).

    Latents are enlarged as the VAE's, since among the network's neighbours have different scales.
    """

    mean: Tensor
    std: Tensor

    def to_model(self, latents: Tensor) -> Tensor:
        """Return the network's latents for those of the VAE, (B, C, h, w) of whole patches."""
        patches, mean, std = self._patches(latents)
        return ((patches - mean) / std).reshape(latents.shape)

    def to_vae(self, latents: Tensor) -> Tensor:
        """Return the VAE's latents for those of the network, (B, C, h, w) of whole patches."""
        patches, mean, std = self._patches(latents)
        return (patches * std + mean).reshape(latents.shape)

    def by_cells(self, change: Callable[[Tensor], Tensor], difference: Tensor) -> Tensor:
        """Return what a linear `change` makes of a difference of the network's latents, made of the VAE's."""
        patches, _, std = self._patches(difference)
        patches, _, _ = self._patches(change((patches * std).reshape(difference.shape)))
        return (patches / std).reshape(difference.shape)

    def _patches(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents (B, C, h / p, p, w / p, p), and mean and deviation (C, 1, p, 1, p)."""
        channels, rows, columns = self.mean.shape
        h, w = latents.shape[2:]
        patches = latents.reshape(-1, channels, h // rows, rows, w // columns, columns)
        mean, std = (x.to(latents).view(channels, 1, rows, 1, columns) for x in (self.mean, self.std))
        return patches, mean, std


def enlarged(latents: Tensor, cells: Size, codec: CellCodec | None, mode: Interpolation | None = None) -> Tensor:
    """Return the network's latents at `cells`, enlarged as the VAE's where a codec is given; None: bicubic."""
    if codec is None:
        return enlarge_latents(latents, cells, mode)
    return codec.to_model(enlarge_latents(codec.to_vae(latents), cells, mode))


def by_cells(codec: CellCodec | None, change: Callable[[Tensor], Tensor], difference: Tensor) -> Tensor:
    """Return what a linear `change` makes of a difference of latents, of the VAE's where a codec is given."""
    return change(difference) if codec is None else codec.by_cells(change, difference)


def codec_of(vae: Any) -> Codec | PatchCodec:
    """Return the codec of a VAE: of its batch norm where it has one, else of its configuration."""
    norm = getattr(vae, "bn", None)
    if norm is None:
        return Codec.of(vae.config)
    places = tuple(vae.config.patch_size)
    variance = norm.running_var.unflatten(0, (-1, *places))
    return PatchCodec(norm.running_mean.unflatten(0, (-1, *places)), (variance + norm.eps).sqrt())


def _along(values: tuple[float, ...], latents: Tensor) -> Tensor:
    """Return values that broadcast over the channels of `latents`."""
    return torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, *(1,) * (latents.ndim - 2))
