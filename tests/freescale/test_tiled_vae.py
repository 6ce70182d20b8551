"""The tiled VAE against diffusers' own untiled call, on toy widths with the topology of SDXL's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from freescale.forward_process import normal
from freescale.vae.passes import decode_tiles, encode_tiles
from freescale.vae.plan import plan_tiles, untiled_bytes
from freescale.vae.tile import Tile, TiledVae, reader

AMPLE, MIB = 1 << 33, 1 << 20
SIZES = [(7, 9), (13, 5), (11, 22)]  # latent cells; no tile below divides their pixels


@cache
def vae_of(layers: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 8, 8),
            layers_per_block=layers,
            norm_num_groups=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    for name, parameter in vae.named_parameters():  # norms whose scale and shift would show if they were left out
        if "norm" in name:
            parameter.data += 0.3 * normal(tuple(parameter.shape), 1, name)
    return vae.to(dtype).eval().requires_grad_(False)


def decoded(vae: Any, latents: Tensor, **how: Any) -> Tensor:
    """The picture, each pixel from exactly one tile."""
    height, width = (8 * n for n in latents.shape[-2:])
    picture = latents.new_full((latents.shape[0], 3, height, width), torch.nan)
    for rows, columns, tile in decode_tiles(vae, latents, **how):
        assert picture[..., slice(*rows), slice(*columns)].isnan().all()
        picture[..., slice(*rows), slice(*columns)] = tile
    return picture


def encoded(vae: Any, picture: Tensor, **how: Any) -> Tensor:
    def read(region: Any) -> Tensor:
        return picture[..., slice(*region[0]), slice(*region[1])]

    return encode_tiles(vae, read, tuple(picture.shape[-2:]), **how)  # type: ignore[arg-type]


def cells(size: tuple[int, int], dtype: torch.dtype, rows: int = 1) -> Tensor:
    return (normal((rows, 4, *size), 3, "latents") * 2 + 1).to(dtype)


def pixels(size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return (normal((1, 3, 8 * size[0], 8 * size[1]), 3, "picture") * 0.5 + 0.2).to(dtype)


def least(vae: Any, half: Any, size: tuple[int, int], tile: int) -> int:
    """Bytes for which there is just a plan."""
    with pytest.raises(ValueError, match="MiB would") as refused:
        plan_tiles(vae, half, size, tile, 1)
    return int(str(refused.value).split()[-3]) * MIB


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", SIZES)
def test_decode_is_the_untiled_one(size: tuple[int, int], dtype: torch.dtype, within: float) -> None:
    vae, latents = vae_of(dtype=dtype), cells(size, dtype)
    torch.testing.assert_close(decoded(vae, latents, tile=48), vae.decode(latents).sample, atol=within, rtol=within)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", SIZES)
def test_encode_is_the_untiled_one(size: tuple[int, int], dtype: torch.dtype, within: float) -> None:
    vae, picture = vae_of(dtype=dtype), pixels(size, dtype)
    found, expected = encoded(vae, picture, tile=48), vae.encode(picture).latent_dist.parameters
    torch.testing.assert_close(found, expected, atol=within, rtol=within)


@pytest.mark.parametrize("tile", [8, 24, 40, 512])
def test_the_tile_edge_does_not_matter(tile: int) -> None:
    vae, latents, picture = vae_of(1), cells((5, 7), torch.float64), pixels((5, 7), torch.float64)
    torch.testing.assert_close(decoded(vae, latents, tile=tile), vae.decode(latents).sample, atol=1e-10, rtol=0)
    moments = vae.encode(picture).latent_dist.parameters
    torch.testing.assert_close(encoded(vae, picture, tile=tile), moments, atol=1e-10, rtol=0)


@pytest.mark.thorough
def test_neither_does_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from freescale.vae import passes, plan, tile

    for module in (passes, plan, tile):
        monkeypatch.setattr(module, "BLOCK", 16)  # several blocks of queries and of keys
    monkeypatch.setattr(plan, "MIB", 1 << 12)
    vae, size = vae_of(1), (16, 12)
    latents, picture = cells(size, torch.float64), pixels(size, torch.float64)
    plans = set()
    for half, whole in (("decoder", size), ("encoder", (128, 96))):
        with pytest.raises(ValueError, match="would") as refused:
            plan_tiles(vae, half, whole, 32, 1)  # type: ignore[arg-type]
        smallest = int(str(refused.value).split()[-3]) << 12
        for memory in (smallest, 2 * smallest, AMPLE):
            plans.add((half, plan_tiles(vae, half, whole, 32, memory).passes))  # type: ignore[arg-type]
            if half == "decoder":
                found, expected = decoded(vae, latents, tile=32, memory=memory), vae.decode(latents).sample
            else:
                moments = vae.encode(picture).latent_dist.parameters
                found, expected = encoded(vae, picture, tile=32, memory=memory), moments
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert len(plans) > 2


@pytest.mark.parametrize("memory", [AMPLE, 0])
def test_whoever_computes_the_tiles_the_bits_are_the_same(memory: int) -> None:
    vae, size = vae_of(1, torch.float32), (11, 13)
    latents, picture = cells(size, torch.float32), pixels(size, torch.float32)
    many: list[int] = []

    def elsewhere(half: Any, source: Tensor) -> Any:
        def run(tiles: list[Tile], held: Tensor | None) -> list[Tensor]:
            many.append(len(tiles))
            copy = None if held is None else held.clone()
            apart = [TiledVae(vae, half, tuple(source.shape[-2:]), reader(source)) for _ in range(2)]  # type: ignore[arg-type]
            made = {i: apart[i % 2].compute(tiles[i], copy) for i in reversed(range(len(tiles)))}
            return [made[i] for i in range(len(tiles))]

        return run

    for half, source, work in (("decoder", latents, decoded), ("encoder", picture, encoded)):
        how: dict[str, Any] = {"tile": 48, "memory": memory or least(vae, half, tuple(source.shape[-2:]), 48)}  # type: ignore[arg-type]
        assert torch.equal(work(vae, source, run=elsewhere(half, source), **how), work(vae, source, **how))
    assert max(many) >= 4


def test_rows_of_a_batch_have_their_own_statistics() -> None:
    vae, latents = vae_of(1), cells((6, 7), torch.float64, rows=2)
    latents[1] *= 5
    torch.testing.assert_close(decoded(vae, latents, tile=40), vae.decode(latents).sample, atol=1e-10, rtol=0)


def test_tiles_normalised_by_themselves_would_be_seen() -> None:
    """The figures above can fail: diffusers' own tiles, each with its own statistics, are far off."""
    vae, latents = vae_of(1), cells((11, 22), torch.float64)
    whole, left = vae.decode(latents).sample, vae.decode(latents[..., :11]).sample
    assert (whole[..., :40] - left[..., :40]).abs().max() > 1e-3


def test_a_memory_that_nothing_fits_is_refused_with_what_would_do() -> None:
    vae = vae_of(1)
    enough = least(vae, "decoder", (64, 64), 64)
    assert plan_tiles(vae, "decoder", (64, 64), 64, enough).bytes <= enough
    with pytest.raises(ValueError, match=f"{enough // MIB} MiB would"):
        decode_tiles(vae, cells((64, 64), torch.float64), tile=64, memory=enough - MIB)


def test_less_memory_keeps_fewer_maps_and_computes_more_anew() -> None:
    vae, size = vae_of(), (256, 256)
    plans = [plan_tiles(vae, "decoder", size, 256, memory) for memory in (110 * MIB, 200 * MIB, AMPLE)]
    kept = [len(p.parts) for p in plans]
    anew = [p.passes / len(p.parts) for p in plans]  # times a layer is run, about
    assert kept == sorted(kept)
    assert anew == sorted(anew, reverse=True)
    assert anew[0] > anew[-1]
    assert plans[0].bytes <= 110 * MIB < untiled_bytes(vae, "decoder", size)


def test_what_tiling_does_not_know_is_refused() -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, up_block_types=("AttnUpDecoderBlock2D",))
    with pytest.raises(ValueError, match="middle block only"):
        untiled_bytes(vae, "decoder", (8, 8))


@pytest.mark.parametrize(("half", "size"), [("decoder", (1024, 1024)), ("encoder", (8192, 8192))])
def test_sdxls_vae_at_8192_takes_less_than_four_gibibytes(half: Any, size: tuple[int, int]) -> None:
    from benchmarks.vae import vae_of as benchmarked

    with torch.device("meta"):
        vae = benchmarked([128, 256, 512, 512], attention=True)
    assert untiled_bytes(vae, half, size) > 128 << 30
    assert plan_tiles(vae, half, size, 512, 3700 * MIB).bytes <= 3700 * MIB
    assert plan_tiles(vae, half, size, 256, 2500 * MIB).bytes <= 2500 * MIB
