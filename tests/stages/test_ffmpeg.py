"""Video files, decoded again with the same binary: frames, size, rate, pixels, comment, bytes, refusals."""

from __future__ import annotations

import json
import re
import subprocess
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stages.errors import SpecError
from stages.media import ffmpeg
from stages.media.ffmpeg import Encoding, check_encoding, encoders, read_comment, read_video, write_video
from stages.spec import exact_rate

if TYPE_CHECKING:
    from pathlib import Path

SIZE, COUNT = (48, 64), 5
COMMENT = json.dumps({"prompt": "a = b; c # d \\ 'e' \"f\"\nline ü", "frames": 5})


def moving(size: tuple[int, int] = SIZE, count: int = COUNT) -> list[np.ndarray]:
    """A bright square that moves over a gradient: (H, W, 3) uint8."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    frames = []
    for index in range(count):
        frame = np.stack([rows * 4 % 256, columns * 3 % 256, np.full(size, 90)], axis=-1).astype(np.uint8)
        frame[8:24, 4 + 8 * index : 20 + 8 * index] = (230, 60, 40)
        frames.append(frame)
    return frames


def written(path: Path, format: str, fps: str = "10", **options: object) -> Path:
    encoding = Encoding(format, SIZE, Fraction(fps), comment=COMMENT, **options)  # type: ignore[arg-type]
    assert write_video(path, (frame.tobytes() for frame in moving()), encoding) == COUNT
    return path


def listed(path: Path) -> tuple[Fraction, tuple[int, int], list[int]]:
    """(frame rate, (height, width), presentation time of each frame in frames), as the binary itself decodes it."""
    out = subprocess.run(
        [ffmpeg.binary(), *ffmpeg.QUIET, "-i", str(path), "-f", "framecrc", "-"], capture_output=True, text=True
    ).stdout
    base = Fraction(re.search(r"#tb 0: (\S+)", out)[1])  # type: ignore[index]
    width, height = re.search(r"#dimensions 0: (\d+)x(\d+)", out).groups()  # type: ignore[union-attr]
    times = [int(line.split(",")[2]) for line in out.splitlines() if not line.startswith("#")]
    return 1 / base, (int(height), int(width)), times


@pytest.mark.parametrize("fps", ["10", "24000/1001", "60"])
@pytest.mark.parametrize("format", ["mp4", "hevc", "ffv1"])
def test_frames_size_and_rate_are_exact(tmp_path: Path, format: str, fps: str) -> None:
    path = written(tmp_path / f"video.{'mkv' if format == 'ffv1' else 'mp4'}", format, fps)
    assert listed(path) == (Fraction(fps), SIZE, list(range(COUNT)))
    assert json.loads(read_comment(path)) == json.loads(COMMENT)


def test_ffv1_keeps_every_bit(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.mkv", "ffv1")
    assert [frame.tobytes() for frame in moving()] == list(read_video(path, SIZE))


@pytest.mark.parametrize(("format", "pixel_format", "most"), [("mp4", "yuv444p", 3.0), ("mp4", "yuv420p", 6.0)])
def test_colours_survive(tmp_path: Path, format: str, pixel_format: str, most: float) -> None:
    """Matrix and range are told to the decoder as they were used: a wrong one is off by 10 and more."""
    path = written(tmp_path / "clip.mp4", format, pixel_format=pixel_format, crf=4)
    for frame, given in zip(read_video(path, SIZE), moving(), strict=True):
        found = np.frombuffer(frame, np.uint8).reshape(given.shape)
        assert np.abs(found.astype(int) - given.astype(int)).mean() < most


@pytest.mark.parametrize("format", ["mp4", "hevc", "ffv1"])
def test_the_same_bytes_each_time(tmp_path: Path, format: str) -> None:
    suffix = "mkv" if format == "ffv1" else "mp4"
    first, second = (written(tmp_path / f"{name}.{suffix}", format) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_crf_decides_size(tmp_path: Path) -> None:
    sizes = [written(tmp_path / f"{crf}.mp4", "mp4", crf=crf).stat().st_size for crf in (5, 30)]
    assert sizes[0] > sizes[1]


def test_odd_sides_and_missing_encoders_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"yuv420p needs even sides, not 63x48; yuv444p, ffv1 and frames work"):
        check_encoding("mp4", (48, 63))
    check_encoding("mp4", (48, 63), "yuv444p")
    check_encoding("ffv1", (48, 63))
    check_encoding("frames", (48, 63))
    assert {"libx264", "libx265", "ffv1"} <= encoders(ffmpeg.binary())
    monkeypatch.setattr(ffmpeg, "encoders", lambda _: frozenset({"libx264", "ffv1"}))
    with pytest.raises(SpecError, match=r"hevc needs libx265, which .* without; mp4, ffv1, frames would work"):
        check_encoding("hevc", SIZE)


def test_what_ffmpeg_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ffmpeg could not write clip\.nothing"):
        write_video(tmp_path / "clip.nothing", [b"\0" * 9216], Encoding("mp4", SIZE, Fraction(10)))
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(RuntimeError, match="cannot be decoded"):
        list(read_video(tmp_path / "clip.mp4", SIZE))


@pytest.mark.parametrize(
    ("given", "exact"), [(24, "24"), (23.976, "2997/125"), ("24000/1001", "24000/1001"), ("48/2", "24"), (None, None)]
)
def test_rates_are_exact_fractions(given: object, exact: str | None) -> None:
    assert exact_rate(given) == exact


@pytest.mark.parametrize("given", ["fast", "1/0", 0, -5, 500, "1000001/100003", "nan"])
def test_rates_that_cannot_be(given: object) -> None:
    with pytest.raises(ValueError, match="frames a second"):
        exact_rate(given)
