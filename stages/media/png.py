"""PNG in sRGB from bands of rows: a picture of any size is written with one band in memory.

The stream is deterministic: every row takes the Paeth filter, zlib's level is 6, and a chunk of data holds a band.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PAETH, LEVEL = 4, 6
SRGB = Path(__file__).with_name("srgb.icc").read_bytes()
"""The colour profile of every picture that is written: lcms's own sRGB, dated 2000-01-01 so that files are the same."""


def write_png(out: BinaryIO, size: tuple[int, int], bands: Iterable[Pixels], provenance: str) -> None:
    """Write 8-bit RGB `bands` (rows, width, 3), which come from top to bottom and make up `size` (height, width).

    `provenance` goes before them as the compressed international text `freescale`. Raises `ValueError` where the rows
    are not as many or as wide as `size` says.
    """
    height, width = size
    out.write(SIGNATURE)
    _chunk(out, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    _chunk(out, b"iCCP", b"sRGB\0\0" + zlib.compress(SRGB))
    _chunk(out, b"iTXt", b"freescale\0\1\0\0\0" + zlib.compress(provenance.encode()))
    packer, above, rows = zlib.compressobj(LEVEL), np.zeros((1, width, 3), np.uint8), 0
    for band in bands:
        if band.shape[1:] != (width, 3):
            raise ValueError(f"a band of shape {band.shape} in a picture {width} wide")
        if packed := packer.compress(_filtered(band, above).tobytes()):
            _chunk(out, b"IDAT", packed)
        above, rows = band[-1:], rows + band.shape[0]
    if rows != height:
        raise ValueError(f"{rows} rows of a picture {height} high")
    _chunk(out, b"IDAT", packer.flush())
    _chunk(out, b"IEND", b"")


def _chunk(out: BinaryIO, kind: bytes, data: bytes) -> None:
    out.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _filtered(band: Pixels, above: Pixels) -> Pixels:
    """Rows of 1 + 3 * width bytes: the filter, then each byte less what Paeth expects from left, above and both."""
    rows, width, _ = band.shape
    up = np.concatenate([above, band[:-1]]).astype(np.int16)
    here = band.astype(np.int16)
    left, corner = (np.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0))) for x in (here, up))
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    expected = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    out = np.empty((rows, 1 + 3 * width), np.uint8)
    out[:, 0] = PAETH
    out[:, 1:] = (here - expected).astype(np.uint8).reshape(rows, -1)
    return out
