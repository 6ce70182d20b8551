"""Streams of noise: one for each purpose, the same everywhere."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from freescale.forward_process import generator, normal, renoise


def test_streams_are_those_of_the_digest() -> None:
    digest = hashlib.sha256(b"(7, 'jitter', 2, 15, 'mid')").digest()
    expected = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    drawn = torch.randn(5, generator=generator(7, "jitter", 2, 15, "mid"))
    assert torch.equal(drawn, torch.randn(5, generator=expected))


def test_streams_differ_by_seed_and_by_every_part_of_their_purpose() -> None:
    purposes = [(1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0), (1, "a", "0"), (1, "a"), (1, "a", 0, 0)]
    draws = {float(normal((1,), *purpose)) for purpose in purposes}
    assert len(draws) == len(purposes)


@given(seed=st.integers(0, 2**64), level=st.integers(0, 9))
def test_draws_do_not_depend_on_order_or_the_global_stream(seed: int, level: int) -> None:
    first = normal((2, 3), seed, "restart_noise", level)
    state = torch.random.get_rng_state()
    normal((4,), seed, "other")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(normal((2, 3), seed, "restart_noise", level), first)
    assert (first.dtype, first.device.type) == (torch.float32, "cpu")


def test_renoise_has_the_variance_it_claims() -> None:
    latents, noise = normal((1, 4, 100, 100), 0, "x"), normal((1, 4, 100, 100), 0, "n")
    added = renoise(latents, noise, 3.0) - latents
    assert abs(float(added.std()) - 3.0) < 0.05  # 5 sigma of 40 000 draws
    assert renoise(latents.double(), noise, 3.0).dtype == torch.float64
    assert torch.equal(renoise(latents, noise, 0.0), latents)
