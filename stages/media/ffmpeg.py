"""Frames -> a video file and back, through the ffmpeg binary that imageio-ffmpeg carries.

Frames go through a pipe one by one as 8-bit RGB (`rgb24`). Files are the same bytes each time: ffmpeg's `bitexact`
flags, a fixed number of threads, no dates; another build of ffmpeg may write others. Colours are BT.709, limited
range, which is what players assume of a video; FFV1 keeps RGB as it is, bit for bit.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imageio_ffmpeg

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from fractions import Fraction
    from pathlib import Path

QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error")
BITEXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact")
SCALE = "scale=in_range=pc:out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
TAGS = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
ENCODERS = {"mp4": "libx264", "hevc": "libx265", "ffv1": "ffv1"}
SETTINGS = {
    "mp4": ("-preset", "medium", "-threads", "4", "-movflags", "+faststart"),
    "hevc": (
        *("-preset", "medium", "-x265-params", "log-level=error:pools=none:frame-threads=1:no-wpp=1"),
        *("-tag:v", "hvc1", "-movflags", "+faststart"),
    ),
    "ffv1": ("-level", "3", "-g", "1", "-slices", "4", "-slicecrc", "1", "-threads", "1"),
}
CRF, PIXEL_FORMAT = 18, "yuv420p"


@dataclass(frozen=True)
class Encoding:
    """How a video file is written. `crf` and `pixel_format` are for `mp4` and `hevc`; `comment` is kept in the file."""

    format: str
    size: tuple[int, int]  # (height, width)
    fps: Fraction
    crf: int | None = None
    pixel_format: str | None = None
    comment: str = ""


def binary() -> str:
    """Return the path of ffmpeg. Raises `SpecError` where there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise SpecError("format: no ffmpeg was found; install imageio-ffmpeg, or use the format 'frames'") from None


@functools.cache
def encoders(ffmpeg: str) -> frozenset[str]:
    """Return the names of the encoders a binary was built with."""
    listed = subprocess.run([ffmpeg, *QUIET, "-encoders"], capture_output=True, text=True, check=True).stdout
    _, _, table = listed.partition("------")
    return frozenset(line.split()[1] for line in table.splitlines() if len(line.split()) > 1)


@functools.cache
def ffmpeg_version(ffmpeg: str) -> str:
    """Return what a binary says of itself: `7.0.2-static`."""
    told = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout
    return told.removeprefix("ffmpeg version ").split()[0]


def check_encoding(format: str, size: tuple[int, int], pixel_format: str | None = None) -> None:
    """Refuse what cannot be written, in one sentence that says what would work. Raises `SpecError`."""
    if format not in ENCODERS:
        return
    height, width = size
    if format != "ffv1" and (pixel_format or PIXEL_FORMAT) == "yuv420p" and (height % 2 or width % 2):
        raise SpecError(f"pixel_format: yuv420p needs even sides, not {width}x{height}; yuv444p, ffv1 and frames work")
    there = encoders(binary())
    if ENCODERS[format] not in there:
        able = [name for name, encoder in ENCODERS.items() if encoder in there]
        raise SpecError(
            f"format: {format} needs {ENCODERS[format]}, which {binary()} was built without; "
            f"{', '.join([*able, 'frames'])} would work"
        )


def write_video(path: Path, frames: Iterable[bytes], encoding: Encoding) -> int:
    """Encode `frames`, each H * W * 3 bytes of RGB, into `path`; return how many there were."""
    height, width = encoding.size
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as errors:
        told = f"{scratch}/comment.txt"
        with open(told, "w", encoding="utf-8") as file:
            file.write(f";FFMETADATA1\ncomment={_escaped(encoding.comment)}\n")
        command = [binary(), *(word for word in QUIET if word != "-nostdin"), "-y", "-f", "rawvideo"]
        command += ["-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(encoding.fps), "-i", "pipe:0"]
        command += ["-i", told, "-map", "0:v", "-map_metadata", "1", *_video(encoding), *BITEXACT, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        count = _feed(process, frames)
        if process.wait() != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"ffmpeg could not write {path.name}: {said[-1] if said else process.returncode}")
    return count


def _feed(process: subprocess.Popen[bytes], frames: Iterable[bytes]) -> int:
    assert process.stdin is not None
    count = 0
    try:
        for frame in frames:
            process.stdin.write(frame)
            count += 1
        process.stdin.close()
    except BrokenPipeError:
        pass  # ffmpeg says why
    except BaseException:
        process.kill()
        process.wait()
        raise
    return count


def _video(encoding: Encoding) -> list[str]:
    options = ["-c:v", ENCODERS[encoding.format], *SETTINGS[encoding.format]]
    if encoding.format == "ffv1":
        return ["-pix_fmt", "bgr0", *options]
    crf = CRF if encoding.crf is None else encoding.crf
    return ["-vf", f"{SCALE},format={encoding.pixel_format or PIXEL_FORMAT},{TAGS}", *options, "-crf", str(crf)]


def _escaped(text: str) -> str:
    for special in "\\=;#\n":
        text = text.replace(special, f"\\{special}")
    return text


def read_comment(path: Path) -> str:
    """Return the comment in a video file, which is the spec as JSON in those we wrote; empty where there is none."""
    command = [binary(), *QUIET, "-i", str(path), "-f", "ffmetadata", "pipe:1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in _logical(said):
        name, equals, value = line.partition("=")
        if equals and name.lower() == "comment":
            return _unescaped(value)
    return ""


def _logical(text: str) -> Iterator[str]:
    """Lines, where one that ends in a lone backslash goes on."""
    held = ""
    for line in text.splitlines():
        held += line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            held += "\n"
            continue
        yield held
        held = ""


def _unescaped(text: str) -> str:
    out, words = "", iter(text)
    for letter in words:
        out += next(words, "") if letter == "\\" else letter
    return out


def read_video(path: Path, size: tuple[int, int]) -> Iterator[bytes]:
    """The frames of a video file of a known (height, width), each H * W * 3 bytes of RGB. Raises `RuntimeError`."""
    length = size[0] * size[1] * 3
    command: list[Any] = [binary(), *QUIET, "-i", str(path), "-map", "0:v", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*command, "pipe:1"], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            while len(frame := process.stdout.read(length)) == length:
                yield frame
        finally:
            process.stdout.close()
            process.kill() if process.poll() is None and len(frame) == length else None
            code = process.wait()
        if code or frame:
            errors.seek(0)
            raise RuntimeError(f"{path} cannot be decoded: {errors.read().decode(errors='replace').strip()[-300:]}")
