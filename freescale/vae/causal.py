"""A causal VAE of videos (`AutoencoderKLWan`), one latent frame at a time: memory does not grow with the video.

The first latent frame is the first frame, each further one is four. A causal convolution sees frames of its own and
the two before, which it is handed from a cache, so that whatever is computed at once, every number is the same: these
are the calls that `vae.decode` and `vae.encode` of the stock VAE make.

Videos are (B, 3, F, H, W), latents (B, C, f, h, w) in the VAE's own scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freescale.gradients import without_gradients

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

CAUSAL = ("AutoencoderKLWan",)
"""The classes that this module calls."""


def spans_of(frames: int, time_cell: int) -> Iterator[tuple[int, int]]:
    """Yield (first, one past the last) of the frames of every latent frame."""
    yield 0, 1
    for first in range(1, frames, time_cell):
        yield first, first + time_cell


@without_gradients
def decoded(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """Yield the frames of each latent frame in order, about [-1, 1], not clamped."""
    cache = cache_of(vae.decoder)
    given = vae.post_quant_conv(latents)
    for index in range(latents.shape[2]):
        one = given[:, :, index : index + 1]
        yield as_pixels(vae, vae.decoder(one, feat_cache=cache, feat_idx=[0], first_chunk=index == 0))


@without_gradients
def encoded(vae: Any, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield what the encoder makes of each latent frame's frames, (B, 2 C, 1, h, w), for `posterior`."""
    cache = cache_of(vae.encoder)
    for part in parts:
        yield vae.encoder(as_patches(vae, part), feat_cache=cache, feat_idx=[0])


@without_gradients
def posterior(vae: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents for all that `encoded` made, (B, 2 C, f, h, w)."""
    mean, logarithm = vae.quant_conv(features).chunk(2, dim=1)
    return mean, (0.5 * logarithm.clamp(-30.0, 20.0)).exp()


def patch_of(vae: Any) -> int:
    """Return the side of the patches of pixels that the layers work on: 2 in Wan 2.2 5B, else 1."""
    return int(vae.config.get("patch_size") or 1)


def as_pixels(vae: Any, patches: Tensor) -> Tensor:
    """Return the frames (B, 3, F, p H, p W) of what the decoder makes, (B, 3 p p, F, H, W)."""
    if (side := patch_of(vae)) == 1:
        return patches
    batch, channels, frames, height, width = patches.shape
    split = patches.view(batch, channels // side**2, side, side, frames, height, width)
    return split.permute(0, 1, 4, 5, 3, 6, 2).reshape(batch, -1, frames, side * height, side * width)


def as_patches(vae: Any, frames: Tensor) -> Tensor:
    """Return what the encoder takes, (B, 3 p p, F, H, W), of frames (B, 3, F, p H, p W)."""
    if (side := patch_of(vae)) == 1:
        return frames
    batch, channels, count, height, width = frames.shape
    split = frames.reshape(batch, channels, count, height // side, side, width // side, side)
    return split.permute(0, 1, 6, 4, 2, 3, 5).reshape(batch, -1, count, height // side, width // side)


def cache_of(half: nn.Module) -> list[Any]:
    """Return an empty cache, with a place for each causal convolution of a half."""
    return [None] * sum(hasattr(module, "_padding") for module in half.modules())
