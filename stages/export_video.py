"""Video -> a file with the spec in it, written frame by frame.

Beside it lie a GIF, an animated WebP and a strip of frames: small previews for pages and mail.
"""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from PIL import Image

from stages.export import compressed_bytes, encode_file, to_pixels, with_method
from stages.media.ffmpeg import ENCODERS, Encoding, binary, ffmpeg_version, write_video
from stages.stage import Cost, Networks, Parents, Size, Stage, Tensors, Video, not_in_key, picture_cost, video_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

SUFFIXES = {"mp4": ".mp4", "hevc": ".mp4", "ffv1": ".mkv", "frames": ".zip"}
GIF, WEBP, STRIP = "preview.gif", "preview.webp", "strip.png"
PREVIEW_SIDE, PREVIEW_FRAMES = 320, 120  # pixels of the longer side; of a longer video every n-th frame
PREVIEWS = {GIF: ".gif", WEBP: ".webp", STRIP: "-strip.png"}  # the ends of their copies' names
STRIP_FRAMES, STRIP_SIDE, MARGIN = 8, 256, 4
DOS_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ExportVideo(Stage):
    """The file `video.<suffix>` of a level, with `provenance` (spec, level and model as JSON) in it, and previews.

    `fps` is an exact fraction as text; `crf` and `pixel_format` are for `mp4` and `hevc`.
    """

    name = "export"
    variant = 1
    streamed = frozenset({"image"})

    format: str
    fps: str
    provenance: str
    crf: int | None = None
    pixel_format: str | None = None
    method: str = not_in_key("")  # its name, which `provenance` lacks

    @property
    def description(self) -> str:
        """What the file says: `provenance` with the name of the method."""
        return with_method(self.provenance, self.method)

    @property
    def file_name(self) -> str:
        """What the video's file is called in the artifact."""
        return f"clip{SUFFIXES[self.format]}"

    def tools(self) -> dict[str, str]:
        """The build of ffmpeg: another one may write other bytes."""
        return {"ffmpeg": ffmpeg_version(binary())} if self.format in ENCODERS else {}

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """The digest of the 8-bit pixels of all frames, as {"pixels_sha256": 32 bytes}."""
        digest = hashlib.sha256()
        for frame in video_of(parents, "image"):
            digest.update(to_pixels(frame).tobytes())
        return {"pixels_sha256": torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)}

    def write_files(self, parents: Parents, folder: Path) -> None:
        """The video and its previews."""
        video = video_of(parents, "image")
        encode_video(folder / self.file_name, video, self)
        (folder / STRIP).write_bytes(strip(video))
        previews, durations = small_frames(video, Fraction(self.fps))
        (folder / GIF).write_bytes(_animation(previews, durations, "GIF"))
        (folder / WEBP).write_bytes(_animation(previews, durations, "WEBP"))

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """A frame on the host."""
        return picture_cost(source)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """At most the frames as pictures."""
        return compressed_bytes(size, frames)


def encode_video(path: Path, video: Video, export: ExportVideo) -> None:
    """Write a video in the format of `export`, one frame at a time. Raises `RuntimeError` if ffmpeg stops early."""
    pictures = (to_pixels(frame) for frame in video)
    if export.format == "frames":
        _write_zip(path, pictures, export)
        return
    first = to_pixels(video[0])
    encoding = Encoding(
        format=export.format,
        size=(first.height, first.width),
        fps=Fraction(export.fps),
        crf=export.crf,
        pixel_format=export.pixel_format,
        comment=export.description,
    )
    written = write_video(path, (picture.tobytes() for picture in pictures), encoding)
    if written != len(video):
        raise RuntimeError(f"ffmpeg took {written} of {len(video)} frames of {path.name}")


def _write_zip(path: Path, pictures: Iterable[Image.Image], export: ExportVideo) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, picture in enumerate(pictures):
            data = encode_file(picture, "png", export.description)
            archive.writestr(zipfile.ZipInfo(f"frame-{index:05d}.png", DOS_EPOCH), data)
        archive.writestr(zipfile.ZipInfo("fps.txt", DOS_EPOCH), f"{export.fps}\n")


def small_frames(video: Video, fps: Fraction) -> tuple[list[Image.Image], list[int]]:
    """Return at most `PREVIEW_FRAMES` small pictures of a video, and how many milliseconds each is shown."""
    step = -(-len(video) // PREVIEW_FRAMES)
    pictures = [_small(to_pixels(video[index]), PREVIEW_SIDE) for index in range(0, len(video), step)]
    ends = [round(min((index + 1) * step, len(video)) * 100 / fps) * 10 for index in range(len(pictures))]
    return pictures, [max(end - start, 10) for start, end in itertools.pairwise([0, *ends])]


def strip(video: Video) -> bytes:
    """Return a PNG of up to eight frames side by side, the first and the last among them."""
    count = min(STRIP_FRAMES, len(video))
    chosen = [round(index * (len(video) - 1) / max(count - 1, 1)) for index in range(count)]
    pictures = [_small(to_pixels(video[index]), STRIP_SIDE) for index in chosen]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (count * (width + MARGIN) - MARGIN, height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index * (width + MARGIN), 0))
    out = BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _small(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _animation(pictures: list[Image.Image], durations: list[int], kind: str) -> bytes:
    out = BytesIO()
    settings = {"quality": 80, "method": 4} if kind == "WEBP" else {}
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **settings)
    return out.getvalue()
