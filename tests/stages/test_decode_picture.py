"""Files of one scene in every mode and form decode to that scene."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.media.decode_picture import Decoded, PictureError, decode
from stages.media.png import SRGB

Flip = Image.Transpose
HEIGHT, WIDTH = 32, 48
BEFORE_TURNING = {  # the scene as it lies in a file of each orientation (EXIF 2.32, 4.6.4)
    1: None, 2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE,
    6: Flip.ROTATE_90, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_270,
}  # fmt: skip


def scene() -> Image.Image:
    levels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    levels[..., 0], levels[..., 1] = np.linspace(0, 255, WIDTH)[None], np.linspace(0, 255, HEIGHT)[:, None]
    levels[2:10, 2:10] = (255, 255, 255)
    return Image.fromarray(levels)


def opened(picture: Image.Image, kind: str, mode: str = "RGB", **how: Any) -> Decoded:
    out = BytesIO()
    picture.save(out, kind, **how)
    return decode(out.getvalue(), mode)


def off(decoded: Decoded, wanted: Image.Image) -> int:
    """The largest difference in levels."""
    assert decoded.picture.size == wanted.size
    assert decoded.picture.mode == wanted.mode
    return int(np.abs(np.asarray(decoded.picture).astype(int) - np.asarray(wanted).astype(int)).max())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", BEFORE_TURNING)
def test_every_orientation_is_turned_upright(orientation: int, kind: str) -> None:
    exif, turn = Image.Exif(), BEFORE_TURNING[orientation]
    exif[0x0112] = orientation
    lying = scene() if turn is None else scene().transpose(turn)
    how = {"lossless": True} if kind == "WEBP" else {}
    assert off(opened(lying, kind, exif=exif, **how), scene()) == 0


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("RGB", "BMP"), ("RGBA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("L", "PNG"), ("1", "TIFF"),
     ("LA", "PNG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")],
)  # fmt: skip
def test_levels_of_a_plain_picture_stay_as_they_are(mode: str, kind: str) -> None:
    made = scene().convert(mode)
    decoded = opened(made, kind)
    assert off(decoded, made.convert("RGB")) == 0
    assert not decoded.converted, "such files keep the keys they had"


def test_16_bits_and_floats_are_the_8_bits_they_stand_for() -> None:
    grey = scene().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert off(opened(deep, kind), grey.convert("RGB")) == 0
    assert off(opened(Image.fromarray(np.asarray(grey).astype(np.float32) / 255), "TIFF", "L"), grey) == 0


def test_transparency_is_white_and_takes_from_a_mask() -> None:
    opacity = Image.new("L", (WIDTH, HEIGHT), 0)
    opacity.paste(255, (0, 0, WIDTH // 2, HEIGHT))
    picture, white = scene(), Image.new("RGB", (WIDTH, HEIGHT), "white")
    picture.putalpha(opacity)
    for kind, how in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert off(opened(picture, kind, **how), Image.composite(scene(), white, opacity)) == 0
    black = Image.composite(scene().convert("L"), Image.new("L", opacity.size), opacity)
    assert off(opened(picture, "PNG", "L"), black) == 0
    seen = opened(scene(), "PNG", transparency=(255, 0, 0))
    assert off(seen, Image.fromarray(np.where((np.asarray(scene()) == (255, 0, 0)).all(-1, keepdims=True), 255,
                                              np.asarray(scene())).astype(np.uint8))) == 0  # fmt: skip


def test_a_profile_of_srgb_changes_nothing_and_lab_is_converted() -> None:
    own = opened(scene(), "PNG", icc_profile=SRGB)
    assert off(own, scene()) == 0
    assert not own.converted
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    muted = Image.fromarray((64 + np.asarray(scene()) // 2).astype(np.uint8))
    in_lab = ImageCms.applyTransform(muted, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert in_lab is not None
    assert off(opened(in_lab, "TIFF"), muted) <= 8  # a step of 8-bit Lab is up to so many levels of blue


def linear_grey() -> bytes:
    """A grey profile of linear light, ICC.1:2010: the curve `kTRC` with gamma 1, and what is required beside it."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + white,
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 256),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return head.ljust(128, b"\0") + table + body


def test_linear_light_by_profile_or_gamma_is_brighter_in_srgb() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(4, 0))
    light = np.arange(256) / 255
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    wanted = Image.fromarray(np.rint(255 * srgb).astype(np.uint8)[None].repeat(4, 0))
    by_profile = opened(ramp, "PNG", "L", icc_profile=linear_grey())
    bright = (12, 0, 256, 4)  # of the steepest part of sRGB's curve lcms has a coarse table
    assert off(replace(by_profile, picture=by_profile.picture.crop(bright)), wanted.crop(bright)) <= 2
    assert by_profile.converted
    out = BytesIO()
    ramp.save(out, "PNG")
    chunk = b"gAMA" + struct.pack(">I", 100000)
    png = out.getvalue()
    assert off(decode(png[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:], "L"),
               wanted) == 0  # fmt: skip


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    frames = scene().convert("P") if kind == "GIF" else scene()
    decoded = opened(frames, kind, save_all=True, append_images=[frames.transpose(Flip.ROTATE_180)], **how)
    assert off(decoded, frames.convert("RGB")) == 0
    assert decoded.remarks == ("holds 2 pictures; the first is used",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_is_cut_anywhere_is_refused(kind: str) -> None:
    out, noise = BytesIO(), np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(out, kind)
    whole = out.getvalue()
    for share in (0.0, 0.02, 0.2, 0.5, 0.8, 0.9):
        with pytest.raises(PictureError, match=r"is empty|damaged"):
            decode(whole[: int(len(whole) * share)], "RGB")
