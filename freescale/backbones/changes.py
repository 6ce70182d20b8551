"""Changes that every backbone makes in its own way: each a patch that asks the network's backbone for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from freescale.backbones import BACKBONES, backbone_of
from freescale.backbones.base import RepeatsText, RotatesAnywhere
from freescale.patch_attention import patches_at
from freescale.positions import growing_temperature, temperature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import nn

    from freescale.backbones.base import Backbone
    from freescale.cascade import Level
    from freescale.moment import Moment
    from freescale.positions import PositionRule
    from freescale.rectified_attention import Rectified
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch

Temperature = Literal["off", "entropy", "cinescale"]
"""What multiplies the logits of attention: nothing, sqrt(ln tokens / ln trained tokens), or CineScale's two factors."""


def fusing(fusion: Fusion, level: Level) -> Patch:
    """Fuse scales in every self-attention over image tokens."""
    return _of_backbone(lambda backbone: backbone.fused(fusion, level.latent_hw))


def patching(moment: Moment, *, jitter: bool) -> Patch:
    """Cut every self-attention over image tokens into blocks, which `jitter` moves above twice the training size."""
    asked = patches_at(moment, jitter=jitter)
    return _of_backbone(lambda backbone: backbone.in_patches(asked, moment.level.latent_hw))


def reaching(rule: PositionRule, tempered: Temperature, level: Level) -> Iterator[Patch]:
    """Yield what lets attention reach over a grid that is larger than the trained one: positions and temperature."""
    (h, w), base = level.latent_hw, level.base_hw
    if rule != "none":
        yield _of_backbone(lambda backbone: backbone.positioned(rule, (h, w), base))
    if tempered != "off":
        rises = temperature if tempered == "entropy" else growing_temperature
        yield _of_backbone(lambda backbone: backbone.tempered(rises(h * w, base[0] * base[1])))


def rectifying(rectified: Rectified, level: Level) -> Patch:
    """Attend in tiles of queries to all keys, with the offsets of keys held to those of the training size.

    Raises `ValueError` for a network whose backbone cannot.
    """

    def patch(network: nn.Module) -> AbstractContextManager[None]:
        """Ask the network's backbone."""
        backbone: RotatesAnywhere = _able(network, RotatesAnywhere)
        return backbone.rectified(rectified, level.latent_hw, level.base_hw)(network)

    return patch


def repeating_text(level: Level) -> Patch:
    """Repeat the text once for each training grid that the level's grid begins.

    Raises `ValueError` for a network whose backbone cannot.
    """

    def patch(network: nn.Module) -> AbstractContextManager[None]:
        """Ask the network's backbone."""
        backbone: RepeatsText = _able(network, RepeatsText)
        return backbone.repeated_text(level.latent_hw, level.base_hw)(network)

    return patch


def _able(network: nn.Module, ability: Any) -> Any:
    """Return the backbone of a network. Raises `ValueError` for one without the ability."""
    backbone = backbone_of(network)
    if isinstance(backbone, ability):
        return backbone
    able = [name for name, kind in BACKBONES.items() if issubclass(kind, ability)]
    raise ValueError(f"the network is a {type(network).__name__}, allowed: {', '.join(able)}")


def _of_backbone(change: Callable[[Backbone], Patch]) -> Patch:
    return lambda network: change(backbone_of(network))(network)
