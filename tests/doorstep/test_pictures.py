"""Pictures, masks and places for results as people have them, and what they read where one cannot serve."""

from __future__ import annotations

import shutil
import struct
import zlib
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.doorstep.harness import Case, check, prepare, table
from tests.doorstep.harness import call as said

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SIZE = "--size 256x192 --steps 2"
SOURCE = f"plan x --image a.png {SIZE}"
MASK = f"plan x --mask a.png:3 {SIZE}"
KINDS = "PNG, JPEG, TIFF, WEBP, BMP or GIF"


def scene(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of a ramp in each direction."""
    levels = np.zeros((size[1], size[0], 3), np.uint8)
    levels[..., 0], levels[..., 1] = np.linspace(0, 255, size[0])[None], np.linspace(0, 255, size[1])[:, None]
    return Image.fromarray(levels).convert(mode)


def data(picture: Image.Image, kind: str, **how: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def turned(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return partial(scene("RGB", (48, 64)).save, format="JPEG", exif=exif)


def floats(high: float) -> bytes:
    return data(Image.fromarray(np.linspace(0, high, 64 * 48, dtype=np.float32).reshape(48, 64)), "TIFF")


def png(width: int, height: int) -> bytes:
    """The head of a PNG of a size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def clear(colour: str) -> bytes:
    """A picture of one colour, whose left half is transparent."""
    picture = Image.new("RGBA", (64, 48), colour)
    picture.paste((0, 0, 0, 0), (0, 0, 32, 48))
    return data(picture, "PNG")


def bad(name: str, content: bytes, *says: str, words: str = SOURCE) -> Case:
    return Case(name, words, says=("a.png", *says), files={"a.png": content})


PNG, JPEG = data(scene(), "PNG"), data(scene(), "JPEG")


@table(
    bad("empty", b"", "is empty"),
    bad("text", b"hello", KINDS),
    bad("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", KINDS, "save it as PNG"),
    bad("pdf", b"%PDF-1.4", KINDS),
    bad("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", KINDS),
    bad("cut-png", PNG[: len(PNG) // 2], "cut off or damaged", "PNG"),
    bad("cut-jpeg", JPEG[: len(JPEG) // 2], "damaged"),
    bad("cut-jpeg-at-its-end", JPEG[:-9], "cut off or damaged", "JPEG"),
    bad("cut-gif", data(scene("P"), "GIF")[:-40], "cut off or damaged", "GIF"),
    bad("cut-webp", data(scene(), "WEBP")[:-9], "damaged"),
    bad("cut-in-its-head", JPEG[:30], "damaged"),
    bad("bomb", png(9000, 9000), "9000x9000", "8192x8192"),
    bad("larger-bomb", png(60000, 60000), "8192x8192", "make it smaller"),
    bad("floats-to-255", floats(255), "0 to 255", "0 (black) to 1 (white)"),
    bad("not-a-number", floats(float("nan")), "nan"),
    bad("32-bits", data(Image.fromarray(np.arange(3072, dtype=np.int32).reshape(48, 64)), "TIFF"), "8 or 16 bits"),
    bad("broken-profile", data(scene(), "PNG", icc_profile=b"none" * 40), "colour profile", "sRGB"),
    bad("black-mask-with-alpha", clear("black"), "marks nothing", "white", words=MASK),
    bad("another-aspect", data(scene(size=(64, 64)), "PNG"), "64x64", "256x192", "256x256"),
    bad("mask-of-another-aspect", data(scene(size=(64, 64)), "PNG"), "64x64", "256x256", words=MASK),
    Case("upright-to-another-aspect", SOURCE, says=("48x64", "another aspect"), files={"a.png": turned(3)}),
    Case("no-picture", SOURCE, says=("a.png", "is not a file")),
    Case("a-folder", f"plan x --image home {SIZE}", says=("home", "is a folder"), files={"home/a.txt": ""}),
    Case("nobodys-home", f"plan x --image '~nobody-here/a.png' {SIZE}", says=("~nobody-here/a.png", "names no user")),
    Case("a-long-name", f"plan x --image {'a' * 300}.png {SIZE}", says=("aaa",)),
    Case("a-device", f"plan x --image /dev/zero {SIZE}", says=("/dev/zero", "is not a file")),
    Case("marks-in-a-name", f"plan x --image '[/x].png' {SIZE}", says=("[/x].png", "is not a file")),
)
def test_a_picture_that_cannot_serve_is_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


def good(name: str, content: bytes | Callable[[Path], None], *says: str, words: str = SOURCE) -> Case:
    return Case(name, words, says=("to do:", *says), code=0, files={"a.png": content})


TWO = {"save_all": True, "append_images": [scene().rotate(180)]}


@table(
    *(good(f"orientation-{number}", turned(number)) for number in (5, 6, 7, 8)),
    good("larger-than-asked", data(scene(size=(512, 384)), "PNG")),
    good("16-bits", data(Image.fromarray(np.full((48, 64), 40000, np.uint16)), "PNG")),
    good("floats", floats(1.0)),
    good("transparent", clear("red"), "laid on white"),
    good("cmyk", data(scene("CMYK"), "JPEG"), "CMYK"),
    good("animated-gif", data(scene(), "GIF", **TWO), "2 pictures; the first is used"),
    good("animated-webp", data(scene(), "WEBP", **TWO), "2 pictures; the first is used"),
    good("animated-png", data(scene(), "PNG", **TWO), "2 pictures; the first is used"),
    good("pages", data(scene(), "TIFF", **TWO), "2 pictures; the first is used"),
    good("mask-in-alpha", clear("white"), words=MASK),
    Case("marks-in-a-name", f"plan x --image '[/x] :a:.png' {SIZE}", code=0, says=("[/x] :a:.png' has transparent",),
         files={"[/x] :a:.png": clear("red")}),
)  # fmt: skip
def test_a_picture_is_taken(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


RENDER = "render 'a red disc' --size 64x64 --steps 1 --method direct --threads 1 --device cpu"


@table(
    Case("proc", f"{RENDER} --out /proc/x.png", says=("/proc/x.png", "another folder")),
    Case("sys", f"{RENDER} --out /sys/x.png", says=("/sys/x.png", "another folder")),
    Case("below-a-file", f"{RENDER} --out a.txt/x.png", says=("a.txt/x.png", "takes no file"), files={"a.txt": ""}),
    Case("device", f"{RENDER} --out /dev/null", says=("/dev/null", "takes no file")),
    Case("long-name", f"{RENDER} --out {'a' * 251}.png", says=("aaa", "too long")),
    Case("standard-output", f"{RENDER} --out -", says=("'-'", "name a file")),
    Case("jpg", f"{RENDER} --out x.jpg", says=("x.jpg", ".png", "'x.png' would work")),
    Case("tiff", f"{RENDER} --out x.tiff", says=("x.tiff", ".png", "--format tiff")),
    Case("tif", f"{RENDER} --out x.tif", says=("x.tif", "--format tiff")),
    Case("other-format", f"{RENDER} --format webp --out x.png", says=("x.png", ".webp", "--format png")),
    Case("video", f"{RENDER} --out x.mp4", says=("x.mp4", "'x.png' would work")),
    Case("not-ours", f"{RENDER} --out x.png", says=("x.png", "--overwrite"), files={"x.png": "mine"}),
    Case("a-file-for-a-folder", f"{RENDER} --out x", says=("x/a-red-disc", "takes no file"), files={"x": "mine"}),
    Case("nobodys-home", f"{RENDER} --out '~nobody-here/x.png'", says=("~nobody-here", "names no user")),
    Case("batch-file", "batch a.txt --out b.txt", says=("b.txt", "is not a folder"), files={"a.txt": "x", "b.txt": ""}),
    Case("batch-proc", "batch a.txt --out /proc/x", says=("/proc/x", "another folder"), files={"a.txt": "x"}),
    Case("compare-proc", "compare --method direct --size 64x64 --prompts shapes --count 1 --out /proc/x",
         says=("/proc/x", "another folder")),
)  # fmt: skip
def test_a_place_that_takes_no_result_is_refused_before_the_work(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case, tmp_path, monkeypatch)


@pytest.mark.thorough
def test_a_done_run_needs_neither_its_model_nor_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render, redo; then the files are gone, and everything that was made is delivered again."""
    from stages.models.folder import EMBEDDED

    prepare(Case("", "", files={"a.png": data(scene(size=(80, 64)), "PNG")}), tmp_path, monkeypatch)
    shutil.copytree(EMBEDDED, tmp_path / "model")
    first = said(tmp_path, "render 'a [/x] ring' --image a.png --model ./model --size 160x128 --steps 2 --threads 1 "
                 "--device cpu --out '[final].png'")  # fmt: skip
    assert first.code == 0, first.err
    assert f"{tmp_path}/[final].png" in first.err
    (run,) = (path.name for path in (tmp_path / "home" / "runs").iterdir())
    redo = f"redo {run} --from detail_pass --guidance-scale 2 --threads 1 --device cpu --out"
    assert said(tmp_path, f"{redo} redone.png").code == 0
    (tmp_path / "a.png").write_bytes(PNG)  # another picture
    shutil.rmtree(tmp_path / "model")
    for words, made, like in (
        (f"resume {run} --out again.png", "again.png", "[final].png"),
        (f"{redo} redone-again.png", "redone-again.png", "redone.png"),
        (f"export {run} --out x.webp", "x.webp", "[final].png"),
        (f"export {run} --out x.tif", "x.tif", "[final].png"),
    ):
        told = said(tmp_path, words)
        assert told.code == 0, told.err
        with Image.open(tmp_path / made) as one, Image.open(tmp_path / like) as other:
            assert one.convert("RGB").tobytes() == other.tobytes()
            assert one.info["icc_profile"] == other.info["icc_profile"]
    other = said(tmp_path, f"{redo.replace('--guidance-scale 2', '--guidance-scale 4')} other.png")
    assert other.code == 2
    assert "model" in other.err
    assert said(tmp_path, f"export {run} --out x.jpg").code == 2
    assert said(tmp_path, f"export {run} --format jpeg").err.endswith("the nearest is 'png'\n")
