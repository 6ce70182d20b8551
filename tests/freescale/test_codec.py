"""The scale of latents: as diffusers' pipelines have it, and there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freescale.forward_process import normal
from freescale.vae.codec import Codec


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
