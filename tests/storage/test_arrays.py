from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import open_dask
from storage.arrays import DTYPES, chunk_shape, read_array, write_array

if TYPE_CHECKING:
    from torch import Tensor

MIB = 1 << 20


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Every bit pattern of `dtype` may occur: NaNs with payloads, infinities, subnormals, minus zero."""
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    tensor = random_bits((2, 3, 4), getattr(torch, dtype))
    record = write_array(tmp_path, "a", tensor)
    back = read_array(tmp_path, record)
    assert (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))
    assert (record.dtype, record.stored) == (dtype, "uint16" if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((1, 4, 16, 16), "BChw", torch.float16),
        ((2, 3, 40, 24), "BCHW", torch.uint8),
        ((1, 3, 5, 16, 24), "BCFHW", torch.uint8),
        ((1, 4, 5, 8, 8), "BCFhw", torch.bfloat16),
        ((1, 77, 32), "BTD", torch.float32),
        ((), "", torch.float32),
        ((0, 3), ("rows", "columns"), torch.float32),
    ],
)
def test_shapes_of_a_render_come_back(
    tmp_path: Path, shape: tuple[int, ...], axes: tuple[str, ...], dtype: torch.dtype
) -> None:
    tensor = random_bits(shape, dtype)
    record = write_array(tmp_path, "a", tensor, axes)
    back = read_array(tmp_path, record)
    assert (back.shape, bits(back)) == (tensor.shape, bits(tensor))
    assert (record.shape, record.axes) == (shape, tuple(axes))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), max_size=5).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]),
    seed=st.integers(0, 9),
)
def test_any_small_tensor_comes_back(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    tensor = random_bits(shape, dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        assert bits(read_array(Path(folder), write_array(Path(folder), "a", tensor))) == bits(tensor)


def test_views_gradients_and_results_stay_apart(tmp_path: Path) -> None:
    base = torch.arange(24.0, requires_grad=True)
    view = base.view(4, 6).T[::2]
    back = read_array(tmp_path, write_array(tmp_path, "a", view))
    assert torch.equal(back, view)
    back += 1  # what was read is the caller's own memory
    assert not back.requires_grad


@pytest.mark.parametrize(
    ("shape", "itemsize", "axes", "chunks"),
    [
        ((1, 4, 1024, 1024), 2, "BChw", (1, 4, 1024, 1024)),  # 8 MiB: one chunk
        ((1, 4, 1024, 1032), 2, "BChw", (1, 4, 256, 256)),
        ((1, 4, 200, 9000), 4, "BChw", (1, 4, 200, 256)),
        ((1, 3, 512, 512), 1, "BCHW", (1, 3, 512, 512)),
        ((1, 3, 8192, 8192), 1, "BCHW", (1, 3, 1024, 1024)),
        ((1, 3, 24, 2048, 2048), 1, "BCFHW", (1, 3, 1, 2048, 2048)),
        ((1, 4, 24, 64, 64), 2, "BCFhw", (1, 4, 24, 64, 64)),
        ((1, 4, 24, 256, 256), 4, "BCFhw", (1, 4, 1, 256, 256)),
        ((4 * MIB,), 4, "n", (4 * MIB,)),
        ((0, 4), 4, "ab", (1, 4)),
        ((), 4, "", ()),
    ],
)
def test_chunk_rule(shape: tuple[int, ...], itemsize: int, axes: str, chunks: tuple[int, ...]) -> None:
    assert chunk_shape(shape, itemsize, axes) == chunks


def test_each_kind_has_its_codecs_and_says_what_it_is(tmp_path: Path) -> None:
    def codecs(name: str) -> list[str]:
        return [codec["name"] for codec in json.loads((tmp_path / name / "zarr.json").read_text())["codecs"]]

    write_array(tmp_path, "latents", torch.zeros((1, 4, 8, 8), dtype=torch.bfloat16), "BChw")
    write_array(tmp_path, "image", torch.zeros((1, 3, 8, 8), dtype=torch.uint8), "BCHW")
    assert codecs("latents.zarr") == ["bytes", "crc32c"]
    assert codecs("image.zarr") == ["bytes", "zstd", "crc32c"]
    latents = zarr.open_array(str(tmp_path / "latents.zarr"), mode="r")
    assert (latents.dtype, latents.attrs["dtype"]) == (np.uint16, "bfloat16")
    assert latents.metadata.dimension_names == ("B", "C", "h", "w")  # type: ignore[union-attr]


def test_chunks_of_zeros_are_written(tmp_path: Path) -> None:
    """Else a lost chunk and a black one would be the same."""
    write_array(tmp_path, "video", torch.zeros((1, 3, 4, 8, 8), dtype=torch.uint8), "BCFHW")
    assert len([path for path in tmp_path.rglob("video.zarr/c/**/*") if path.is_file()]) == 4


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has dtype complex64; what can be stored is bool"):
        write_array(tmp_path, "a", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="has shape"):
        write_array(tmp_path, "a", torch.zeros(2, 2), "BCH")
    assert not list(tmp_path.iterdir())


def test_an_array_that_differs_from_its_record_is_refused(tmp_path: Path) -> None:
    record = write_array(tmp_path, "a", torch.zeros(4, dtype=torch.bfloat16))
    for changes in ({"shape": (5,)}, {"dtype": "uint16"}, {"stored": "int16"}):
        with pytest.raises(ValueError, match="not as recorded"):
            read_array(tmp_path, record.revised(**changes))


def test_dask_reads_lazily_in_the_stored_chunks(tmp_path: Path) -> None:
    video = random_bits((1, 3, 4, 8, 8), torch.uint8)
    write_array(tmp_path, "video", video, "BCFHW")
    lazy = open_dask(tmp_path / "video.zarr")
    assert lazy.chunks == ((1,), (3,), (1, 1, 1, 1), (8,), (8,))
    np.testing.assert_array_equal(lazy[:, :, 2].compute(scheduler="synchronous"), video[:, :, 2].numpy())
