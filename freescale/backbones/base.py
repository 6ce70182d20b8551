"""What the denoiser asks of a network: one call, latents in and its raw prediction out, in the layout of the latents.

A backbone is a view of one network and holds no state of its own. How latents become tokens, which form of time the
network takes and what its text is called are its file's, and nobody else's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from freescale.cascade import Size
    from freescale.patch_attention import PatchAttention
    from freescale.positions import PositionRule
    from freescale.rectified_attention import Rectified
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch

BackboneKind = Literal["unet", "flow"]
"""What a method must know of a network: whether it is a UNet, or a transformer that was trained by flow matching."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a call of a network is conditioned on: a row for each of its latents, or one row for all of them."""

    embeds: Tensor  # (B, T, D)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    fps: Tensor | None = None  # (B,) or (1,)
    guidance: float | None = None  # of a network that guidance was distilled into


class Backbone(Protocol):
    """A network as the denoiser calls it."""

    kind: ClassVar[BackboneKind]

    def __init__(self, network: nn.Module) -> None: ...

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the raw prediction (B, C, [F,] h, w) for latents of that shape, `Schedule.model_input`'s."""

    def fused(self, fusion: Fusion, latent_hw: Size) -> Patch:
        """Return the patch that fuses scales in every self-attention over the image."""

    def in_patches(self, asked: PatchAttention, latent_hw: Size) -> Patch:
        """Return the patch that cuts every self-attention over the image into blocks with a window of keys each.

        Raises `ValueError` for a network of videos.
        """

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Return the patch that turns positions by a rule, for latents of a network trained on `trained` cells.

        Raises `ValueError` for a network that has no rotary positions.
        """

    def tempered(self, factor: float) -> Patch:
        """Return the patch that multiplies the logits of joint attention. Raises `ValueError` for a UNet."""


@runtime_checkable
class Rescales(Protocol):
    """A backbone whose guided prediction is rescaled."""

    def rescaled(self, guided: Tensor, positive: Tensor) -> Tensor:
        """Return the guided prediction as the network's pipeline rescales it, by that of the positive pass."""


@runtime_checkable
class RotatesAnywhere(Protocol):
    """A network with rotary positions that can be chosen for each call: those of queries, and of keys."""

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Return the patch of attention in tiles of queries (`rectified_attention`)."""


@runtime_checkable
class RepeatsText(Protocol):
    """A network whose text has places among those of the image."""

    def repeated_text(self, latent_hw: Size, trained: Size) -> Patch:
        """Return the patch that repeats the text at the origin of every trained grid that the latents' grid begins."""


def dtype_of(network: nn.Module) -> torch.dtype:
    """Return the dtype that a network computes in: that of its first parameter which is not stored in 8 bits.

    Parts that stay in float32 do not count.
    """
    parameters = ((name, each.dtype) for name, each in network.named_parameters() if each.dtype.itemsize > 1)
    return next(dtype for name, dtype in parameters if not stays_in_float32(network, name))


def stays_in_float32(network: nn.Module, name: str) -> bool:
    """Return whether a tensor is of a part that its class keeps in float32, whatever dtype is asked for."""
    kept: Any = getattr(network, "_keep_in_fp32_modules", None) or ()
    return any(part in kept for part in name.split("."))


def to_rows(x: Tensor, rows: int) -> Tensor:
    """Return x with `rows` rows: as it is, or its one row repeated."""
    return x if x.shape[0] == rows else x.expand(rows, *x.shape[1:])
