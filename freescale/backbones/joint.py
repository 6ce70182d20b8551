"""What all networks with joint attention share: patches of their attention modules, and latents as patches.

A token is 2 x 2 latent cells.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from freescale.joint_fusion import JointFusion
from freescale.joint_patches import JointPatches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from freescale.cascade import Size
    from freescale.joint_attention import JointAsked
    from freescale.patch_attention import PatchAttention
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch, Processor

    Named = Sequence[tuple[str, Any]]  # attention modules

PATCH = 2  # latent cells of a token's side


class Windowed:
    """What a network with joint attention does with scales and patches: both are windows of one kind of processor."""

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Return the patch that computes every attention over image tokens as `asked`."""
        raise NotImplementedError

    def fused(self, fusion: Fusion, latent_hw: Size) -> Patch:
        """Fuse scales in every attention over image tokens. Raises `ValueError` for what has no meaning there."""
        return self.windowed(JointFusion(fusion), latent_hw)

    def in_patches(self, asked: PatchAttention, latent_hw: Size) -> Patch:
        """Cut every attention over image tokens into blocks, each with its window and all of the text."""
        return self.windowed(JointPatches(asked), latent_hw)


def processed(attentions: Named, wrap: Callable[[str, Processor], Processor]) -> Patch:
    """Put `wrap(name, processor)` in place of the processor of every attention."""

    @contextmanager
    def patch(network: nn.Module) -> Iterator[None]:
        """Give every attention its own processor back afterwards."""
        with ExitStack() as stack:
            for name, attention in attentions:
                stack.callback(attention.set_processor, attention.processor)
                attention.set_processor(wrap(name, attention.processor))
            yield

    return patch


def tempered(attentions: Named, factor: float) -> Patch:
    """Multiply the queries of image and text after their norm, or, where there is none, as they are projected.

    A rotation is linear, so that all logits grow by the factor.
    """

    @contextmanager
    def patch(network: nn.Module) -> Iterator[None]:
        """Remove the hooks afterwards."""
        with ExitStack() as stack:
            for _, attention in attentions:
                for norm, layer in (("norm_q", "to_q"), ("norm_added_q", "add_q_proj")):
                    last = getattr(attention, norm, None) or getattr(attention, layer, None)
                    if last is not None:
                        handle = last.register_forward_hook(lambda _m, _a, output: output * factor)
                        stack.callback(handle.remove)
            yield

    return patch


def tokens_of(latent_hw: Size) -> Size:
    """Return the token grid (h, w) of latents."""
    return latent_hw[0] // PATCH, latent_hw[1] // PATCH


def check_patches(latents: Tensor) -> None:
    """Raise `ValueError` for latents (B, C, h, w) with half a patch."""
    h, w = latents.shape[-2:]
    if h % PATCH or w % PATCH:
        raise ValueError(f"latents are {h} x {w} cells, allowed: multiples of {PATCH}")


def pack(latents: Tensor) -> Tensor:
    """Return the tokens (B, h / 2 * w / 2, 4 C) of latents (B, C, h, w). Raises `ValueError` for half a patch."""
    check_patches(latents)
    batch, channels, h, w = latents.shape
    patches = latents.reshape(batch, channels, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (h // PATCH) * (w // PATCH), channels * PATCH**2)


def unpack(tokens: Tensor, size: Size) -> Tensor:
    """Return the latents (B, C, h, w) of `size` cells whose tokens these are."""
    (h, w), batch = size, tokens.shape[0]
    patches = tokens.reshape(batch, h // PATCH, w // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, h, w)
