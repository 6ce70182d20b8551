"""The scale of latents: as diffusers' pipelines have it, and there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freescale.enlarge import enlarge_latents
from freescale.forward_process import normal
from freescale.structure import low_band
from freescale.vae.codec import Codec, PatchCodec, by_cells, enlarged


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 2, 3, 5)])
@pytest.mark.parametrize(
    ("config", "scale", "mean", "std"),
    [
        ({"scaling_factor": 0.13025}, 0.13025, 0.0, 1.0),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159, 1.0),
        ({"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 3.0]}, 1.0, ..., ...),
        ({"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4, "scaling_factor": 0.5}, 0.5, 0.1, 2.0),
    ],
    ids=["sdxl", "flux", "qwen", "playground"],
)
def test_latents_are_scaled_as_diffusers_does(
    config: dict[str, Any], scale: float, mean: Any, std: Any, shape: tuple[int, ...]
) -> None:
    codec, latents = Codec.of(config), normal(shape, 0)
    if mean is ...:
        mean, std = (torch.tensor(config[f"latents_{of}"]).view(4, *[1] * (len(shape) - 2)) for of in ("mean", "std"))
    torch.testing.assert_close(codec.to_model(latents), (latents - mean) / std * scale)
    torch.testing.assert_close(codec.to_vae(latents), latents * std / scale + mean)
    torch.testing.assert_close(codec.to_vae(codec.to_model(latents)), latents)


def test_one_scale_alone_is_one_multiplication() -> None:
    """To the bit: pictures that were made before there was a codec are made anew."""
    codec, latents = Codec.of({"scaling_factor": 0.18215, "shift_factor": None}), normal((1, 4, 9, 9), 0)
    assert torch.equal(codec.to_model(latents), latents * 0.18215)
    assert torch.equal(codec.to_vae(latents), latents / 0.18215)


def test_a_band_of_latents_is_that_of_the_vaes() -> None:
    """Of a VAE whose latents have other scales from cell to cell: what enlarges them, and what is linear in them."""
    codec = PatchCodec(normal((4, 2, 2), 1), normal((4, 2, 2), 2).abs() + 0.2)
    first, second = normal((2, 4, 6, 8), 3), normal((2, 4, 6, 8), 4)

    def low(x: torch.Tensor) -> torch.Tensor:
        """A smooth part."""
        return low_band(x, (2, 3))

    moved = second + by_cells(codec, low, first - second)
    wanted = codec.to_vae(second) + low(codec.to_vae(first) - codec.to_vae(second))
    torch.testing.assert_close(codec.to_vae(moved), wanted)
    assert not torch.allclose(moved, second + low(first - second), atol=0.01)
    assert torch.equal(by_cells(None, low, first), low(first))
    larger = enlarged(first, (12, 16), codec)
    torch.testing.assert_close(codec.to_vae(larger), enlarge_latents(codec.to_vae(first), (12, 16)))
    assert torch.equal(enlarged(first, (12, 16), None), enlarge_latents(first, (12, 16)))
