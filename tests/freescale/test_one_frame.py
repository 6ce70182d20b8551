"""Qwen-Image's VAE as 2-D layers: against the whole one with a single frame, and by exact tiles."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from freescale import normal
from freescale.vae.one_frame import OneFrameVae
from freescale.vae.passes import decode_tiles, encode_tiles
from freescale.vae.plan import plan_tiles, untiled_bytes
from freescale.vae.tile import reader
from tests.toys import new_qwen_vae


@cache
def vaes() -> tuple[Any, Any]:
    """The VAE of videos with random weights, and what is made of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = new_qwen_vae().eval().requires_grad_(False)
        for name, tensor in whole.state_dict().items():
            if name.endswith("gamma"):
                tensor.uniform_(0.5, 1.5)
    return whole, OneFrameVae(whole)


def test_it_computes_a_single_frame() -> None:
    whole, flat = vaes()
    latents, image = normal((2, 4, 6, 5), 0), normal((2, 3, 48, 40), 1)
    picture = flat.decode(latents).sample
    torch.testing.assert_close(picture.clamp(-1, 1), whole.decode(latents[:, :, None]).sample[:, :, 0])
    found, expected = flat.encode(image).latent_dist, whole.encode(image[:, :, None]).latent_dist
    torch.testing.assert_close(found.mean, expected.mean[:, :, 0])
    torch.testing.assert_close(found.std, expected.std[:, :, 0])
    assert picture.std() > 0.01
    assert sum(each.numel() for each in flat.parameters()) < 0.5 * sum(each.numel() for each in whole.parameters())


@pytest.mark.parametrize("half", ["decoder", "encoder"])
def test_tiles_are_the_whole(half: Any) -> None:
    """In one pass a part, since no norm needs the whole map."""
    _, flat = vaes()
    size = (24, 20) if half == "decoder" else (192, 160)
    memory = 3 << 20
    assert untiled_bytes(flat, half, size) > memory
    plan = plan_tiles(flat, half, size, 64, memory)
    assert plan.passes == len(plan.parts) > 1
    if half == "decoder":
        latents = normal((1, 4, *size), 0)
        image = torch.empty(1, 3, 192, 160)
        for rows, columns, tile in decode_tiles(flat, latents, 64, memory):
            image[..., slice(*rows), slice(*columns)] = tile
        torch.testing.assert_close(image, flat.decode(latents).sample)
    else:
        picture = normal((1, 3, *size), 1)
        moments = encode_tiles(flat, reader(picture), size, 64, memory)
        torch.testing.assert_close(moments[:, :4], flat.encode(picture).latent_dist.mean)
