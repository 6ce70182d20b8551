"""Changes that every backbone makes in its own way: each a patch that asks the network's backbone for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from freescale.backbones import backbone_of
from freescale.positions import temperature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from freescale.backbones.base import Backbone
    from freescale.cascade import Level
    from freescale.positions import PositionRule
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch

Temperature = Literal["off", "entropy"]
"""What the logits of attention are multiplied by: nothing, or sqrt(ln tokens / ln trained tokens)."""


def fusing(fusion: Fusion, level: Level) -> Patch:
    """Fuse scales in every self-attention over image tokens."""
    return _of_backbone(lambda backbone: backbone.fused(fusion, level.latent_hw))


def reaching(rule: PositionRule, tempered: Temperature, level: Level) -> Iterator[Patch]:
    """Yield what lets attention reach over a grid that is larger than the trained one: positions and temperature."""
    (h, w), base = level.latent_hw, level.base_hw
    if rule != "none":
        yield _of_backbone(lambda backbone: backbone.positioned(rule, (h, w), base))
    if tempered == "entropy":
        yield _of_backbone(lambda backbone: backbone.tempered(temperature(h * w, base[0] * base[1])))


def _of_backbone(change: Callable[[Backbone], Patch]) -> Patch:
    return lambda network: change(backbone_of(network))(network)
