"""A picture file -> 8-bit sRGB pixels as the file means them.

What the file says is applied: orientation, transparency, palette, colour profile, gamma, 16 bits, floating point. What
cannot be applied is a `PictureError`, and what a person would want to know is a remark.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_PIXELS = 64 * 2**20  # an 8192 x 8192 picture; more is taken for a bomb
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
NEAR = 2  # levels: a profile that moves no colour further than this is sRGB, written by other hands
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # Pillow's, by a profile's colour space
INTEROPERABILITY = 0xA005  # of EXIF; a camera names Adobe RGB there (DCF, `R03`)
SRGB_GAMMA = 1 / 2.2
SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue


class PictureError(Exception):
    """A file that is no picture, or that says what cannot be applied; the message goes on after the file's name."""


@dataclass(frozen=True)
class Decoded:
    """A picture in mode RGB, or L for a mask, and what a person would want to know of it.

    `converted` says that its levels are not those that the file holds.
    """

    picture: Image.Image
    remarks: tuple[str, ...]
    converted: bool


def decode(data: bytes, mode: str) -> Decoded:
    """Return the picture in a file. `mode` is `RGB`, or `L` for a mask: its grey, times its opacity.

    Of several frames it is the first. Raises `PictureError`.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        opened, remarks = _opened(data)
        upright = _loaded(lambda: ImageOps.exif_transpose(opened), opened.format)
    remarks += [f"is read with a warning: {w.message}" for w in warned if not issubclass(w.category, ResourceWarning)]
    colours, opacity = _parts(_eight_bits(upright))
    if "icc_profile" not in opened.info and opened.getexif().get_ifd(INTEROPERABILITY).get(1) == "R03":
        remarks.append("says that it is in Adobe RGB and has no colour profile; it is taken for sRGB")
    colours, remark = _in_srgb(colours, upright.info)
    remarks += [remark] if remark else []
    if mode == "L":
        picture = _mask(colours.convert("L"), opacity)
    else:
        picture = colours.convert("RGB")
        if opacity is not None:
            picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), opacity)
            remarks.append("has transparent parts, which are laid on white")
    return Decoded(picture, tuple(remarks), _levels_of(opened, mode) != picture.tobytes())


def _opened(data: bytes) -> tuple[Image.Image, list[str]]:
    """The first frame, decoded, and a remark where there are more."""
    if not data:
        raise PictureError("is empty")
    try:
        opened = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise PictureError(f"has more than {MAX_PIXELS} pixels, the limit (8192x8192); make it smaller") from None
    except UnidentifiedImageError:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PictureError(f"is not a picture in {kinds}, or its beginning is damaged; save it as PNG") from None
    except Exception:
        raise PictureError("is damaged: its beginning cannot be read; save it again") from None
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise PictureError(f"is {width}x{height}, over the limit of {MAX_PIXELS} pixels (8192x8192); make it smaller")
    frames: int = _loaded(lambda: getattr(opened, "n_frames", 1), opened.format)
    _loaded(opened.load, opened.format)
    return opened, [f"holds {frames} pictures; the first is used"] if frames > 1 else []


def _loaded(read: Callable[[], Any], format: str | None) -> Any:
    """What `read` gives. Pillow raises many kinds of errors for hostile and for truncated files."""
    try:
        return read()
    except Exception:
        raise PictureError(f"is cut off or damaged: its {format} data cannot be read; save it again") from None


def _levels_of(opened: Image.Image, mode: str) -> bytes | None:
    """The levels that the file holds, without what else it says; None where Pillow has none."""
    try:
        return opened.convert(mode).tobytes()
    except ValueError:
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; of floating point, 0 is black and 1 is white."""
    info = dict(picture.info)
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        levels, seen = values >> 8, info.pop("transparency", None)
        grey = Image.fromarray(levels.astype(np.uint8))
        if seen is not None:
            grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == seen, 0, 255).astype(np.uint8))))
    elif picture.mode == "F":
        numbers = np.asarray(picture)
        low, high = float(numbers.min()), float(numbers.max())
        if not (low >= 0 and high <= 1):
            raise PictureError(
                f"holds numbers from {low:g} to {high:g}; of floating point, 0 (black) to 1 (white) is read, "
                "and any picture of 8 or 16 bits"
            )
        grey = Image.fromarray(np.rint(numbers * 255).astype(np.uint8))
    elif picture.mode == "I":
        raise PictureError("has whole numbers of 32 bits, whose white is not known; save it with 8 or 16 bits")
    else:
        return picture
    grey.info = info
    return grey


def _parts(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of a picture, and its opacity as mode L; None where all of it is opaque."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode not in ("LA", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB") if picture.mode in ("P", "RGBX", "YCbCr", "HSV") else picture, None
    whole = picture.convert("RGBA")
    opacity = whole.getchannel("A")
    return whole.convert("RGB"), None if opacity.getextrema() == (255, 255) else opacity


def _mask(grey: Image.Image, opacity: Image.Image | None) -> Image.Image:
    if opacity is None:
        return grey
    marked = ImageChops.multiply(grey, opacity)
    if marked.getbbox() is None:
        raise PictureError("is black where it is not transparent and so marks nothing; paint in white what it marks")
    return marked


# ---------------------------------------------------------------- colours


def _in_srgb(colours: Image.Image, info: Mapping[str, Any]) -> tuple[Image.Image, str]:
    """The colours in sRGB, or as they are where they are in it already; and a remark, which may be empty."""
    if info.get("icc_profile"):
        return _by_profile(colours, info["icc_profile"]), ""
    if colours.mode == "LAB":
        return _transformed(colours, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"), ""
    if colours.mode == "CMYK":
        return colours, "has CMYK inks and no colour profile; its colours are a guess"
    if "srgb" in info:
        return colours, ""
    given = info.get("chromaticity", SRGB_CHROMATICITY)
    if max(abs(a - b) for a, b in zip(given, SRGB_CHROMATICITY, strict=True)) > 0.01:
        raise PictureError("has other primaries than sRGB and no colour profile; convert it to sRGB")
    gamma = info.get("gamma", SRGB_GAMMA)
    return colours if abs(gamma - SRGB_GAMMA) < 0.01 or gamma <= 0 else _by_gamma(colours, gamma), ""


def _by_gamma(colours: Image.Image, gamma: float) -> Image.Image:
    """The colours of a PNG whose levels are light to the power of `gamma`; 1 is linear light."""
    light = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    table = [round(255 * level) for level in encoded.tolist()]
    colours = colours if colours.mode in ("L", "RGB") else colours.convert("RGB")
    return colours.point(table * len(colours.getbands()))


def _by_profile(colours: Image.Image, data: bytes) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space = profile.profile.xcolor_space.strip()
    except Exception:
        raise PictureError("has a colour profile that cannot be read; save it in sRGB") from None
    mode = MODES.get(space)
    deep = colours.mode in ("CMYK", "LAB")
    if mode is None or (deep and colours.mode != mode) or (not deep and mode in ("CMYK", "LAB")):
        raise PictureError(f"has a colour profile for {space} and pixels in {colours.mode}; save it in sRGB")
    return _transformed(colours.convert(mode), profile, mode)


def _transformed(colours: Image.Image, profile: ImageCms.ImageCmsProfile, mode: str) -> Image.Image:
    """The colours in sRGB, by relative colorimetry; those of a profile that is sRGB's stay as they are."""
    try:
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode in ("RGB", "L") and _moves_nothing(transform, mode):
            return colours
        made = ImageCms.applyTransform(colours, transform)
    except ImageCms.PyCMSError:
        raise PictureError("has a colour profile that cannot be used; save it in sRGB") from None
    assert made is not None
    return made


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform to sRGB leaves every colour of a grid within `NEAR` levels of where it was."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(16, 256, 3)
    sample = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = ImageCms.applyTransform(sample, transform)
    assert moved is not None
    difference = np.asarray(moved).astype(int) - np.asarray(sample.convert("RGB")).astype(int)
    return bool(np.abs(difference).max() <= NEAR)
