"""The pictures and videos of a run as files: their names, where they go, and a level in another format."""

from __future__ import annotations

import dataclasses
import filecmp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from flows.home import user_path
from flows.rendering.files import check_target, copy_whole
from flows.rendering.picture_file import holds
from stages.errors import SpecError, nearest, not_one_of
from stages.export import SUFFIXES, Export, check_whole, encode_file, write_picture
from stages.export_video import PREVIEWS, ExportVideo, encode_video
from stages.export_video import SUFFIXES as VIDEO_SUFFIXES
from stages.media.ffmpeg import check_encoding
from stages.spec import make_spec
from storage import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flows.home import Home
    from stages.call import Call
    from stages.stage import Stage
    from storage import RunRecord

ALSO = {".tif": ".tiff"}  # other ways to write a suffix


@dataclass(frozen=True)
class StoredExport:
    """A level's file: its stage as a call without parents, its key, and the key of the picture that it was made of."""

    call: Call
    key: str
    image: str


def file_name(export: Call) -> str:
    """The name of an export's picture or video in its artifact."""
    assert isinstance(export.stage, Export | ExportVideo)
    return export.stage.file_name


def deliver(export: Call, folder: Path, fetch: Callable[[str], Path]) -> Path:
    """Copy one level's picture or video to `folder`, a video's previews beside it; return its path.

    `fetch` gives the path of a file of the export's artifact.
    """
    (height, width), suffix = export.size, Path(file_name(export)).suffix
    path = folder / f"level-{export.level}-{width}x{height}{suffix}"
    _copy_previews(export.stage, path, fetch)
    return copy_whole(fetch(file_name(export)), path)


def put(export: Call, path: Path, fetch: Callable[[str], Path], digest: bytes, overwrite: bool) -> Path:
    """Copy the last picture or video to `path`, a video's previews beside it; return `path`.

    `fetch` gives the path of a file of the export's artifact, `digest` is the sha256 of its pixels. A file that is this
    picture stays as it is. Raises `SpecError` for another one, which is kept but for `overwrite`.
    """
    made = fetch(file_name(export))
    assert isinstance(export.stage, Export | ExportVideo)
    if path.exists() and not overwrite and not filecmp.cmp(path, made, shallow=False):
        if holds(path, export.stage, digest):
            return path
        raise SpecError(f"out: {str(path)!r} is another picture, so it was kept; this run's is {str(made)!r}")
    _copy_previews(export.stage, path, fetch)
    return copy_whole(made, path)


def _copy_previews(stage: Stage, path: Path, fetch: Callable[[str], Path]) -> None:
    """Copy the previews of the video at `path` beside it."""
    for preview, beside in _previews(stage, path).items():
        copy_whole(fetch(preview), beside)


def _previews(stage: Stage, path: Path) -> dict[str, Path]:
    """The names of a video's previews in its artifact, and the paths of their copies beside the video at `path`."""
    if not isinstance(stage, ExportVideo):
        return {}
    return {preview: path.with_name(f"{path.stem}{ending}") for preview, ending in PREVIEWS.items()}


def target_path(out: Path | None, name: str, stage: Stage, key: str, home: Home, overwrite: bool) -> Path | None:
    """Where the last picture goes; in a folder it is called `name`. An existing file is kept unless it is this picture.

    `stage` is the last export and `key` its key. A file is written there once, to see that it can be. Raises
    `SpecError` for a place that takes none, and for a suffix that is not the format's.
    """
    if out is None:
        return None
    assert isinstance(stage, Export | ExportVideo)
    path = path_in(out, stage, name)
    for file, at in {stage.file_name: path, **_previews(stage, path)}.items():
        if at.exists() and not at.is_dir() and not overwrite and not _made_by(at, stage, file, key, home):
            raise SpecError(f"out: {str(at)!r} exists and is not this run's; choose another name or say --overwrite")
        check_target("out", at)
    return path.absolute()


def first_target(record: RunRecord, home: Home) -> Path | None:
    """The file that a run's last picture was first asked for; None: nobody asked for one outside of the home."""
    if record.target is None and record.outputs:
        path = Path(record.outputs[0])
        return path if path.parent != home.outputs(record.run) else None
    return None if record.target is None else Path(record.target)


def path_in(out: Path, stage: Export | ExportVideo, name: str) -> Path:
    """Return the file that `out` asks for; in a folder it is called `name`. Raises `SpecError` for another suffix."""
    if str(out) == "-":
        raise SpecError("out: '-' is no file; a picture is not written to standard output, so name a file or a folder")
    out, suffix = user_path(out), Path(stage.file_name).suffix
    if out.is_dir() or not out.suffix:
        return out / f"{name}{suffix}"
    given = out.suffix.lower()
    if ALSO.get(given, given) != suffix:
        others = {ending: format for format, ending in _suffixes(stage).items()}
        other = others.get(ALSO.get(given, given))
        nearest = f"--format {other} writes {given}" if other else f"{out.with_suffix(suffix).name!r} would work"
        raise SpecError(f"out: {str(out)!r} does not end in {suffix}, the suffix of {stage.format}; {nearest}")
    return out


def _suffixes(stage: Export | ExportVideo) -> Mapping[str, str]:
    return SUFFIXES if isinstance(stage, Export) else VIDEO_SUFFIXES


def _made_by(path: Path, stage: Export | ExportVideo, file: str, key: str, home: Home) -> bool:
    """Whether the file at `path` is one of this run's; a picture that is not made yet goes by the spec in the file."""
    if not path.is_file():
        return False
    if home.store.find(key) is None:
        return holds(path, stage, None)
    if filecmp.cmp(path, home.store.file_path(key, file), shallow=False):
        return True
    return holds(path, stage, bytes(home.store.read(key)["pixels_sha256"].numpy()))


def export_level(
    home: Home, run: str, exports: tuple[StoredExport, ...], format: str | None, level: int | None, out: Path,
    overwrite: bool, **how: Any,
) -> Path:  # fmt: skip
    """Write the picture or video of one level of a run in another format; return its path.

    `level` counts from 0, None is the last. `how` may hold `fps`, `crf` and `pixel_format` for a video. Raises
    `SpecError` where the level, the format or `out` is refused, or where the level's picture is not in the store.
    """
    levels = range(len(exports))
    if level is not None and level not in levels:
        raise SpecError(f"level: {level} is not one of {', '.join(map(str, levels))}")
    stored = exports[-1 if level is None else level]
    stage = _exporting(stored.call, format, out, {name: value for name, value in how.items() if value is not None})
    path = path_in(out, stage, f"{run}-level-{stored.call.level}")
    if path.exists() and not path.is_dir() and not overwrite:
        raise SpecError(f"out: {str(path)!r} exists; choose another name or say --overwrite")
    if isinstance(stage, Export):
        check_whole(stage.format, stored.call.size)
    write = _writer(home, run, stored, stage)
    check_target("out", path)
    with whole_file(path.absolute(), path.suffix) as partial:
        write(partial)
    return path.absolute()


def _writer(home: Home, run: str, stored: StoredExport, stage: Export | ExportVideo) -> Callable[[Path], object]:
    """What writes a level in the format of `stage`: from its decoded picture, or of a picture from its file.

    Every format of a picture is lossless, so that its file serves where the decoded picture was pruned.
    """
    if home.store.find(stored.image) is not None:
        if isinstance(stage, Export):
            picture = home.store.open_pictures(stored.image)["image"]
            return lambda partial: write_picture(partial, picture, stage)
        video = home.store.open_frames(stored.image)["image"]
        return lambda partial: encode_video(partial, video, stage)
    level, made = stored.call.level, stored.call.stage
    if home.store.find(stored.key) is None:
        raise SpecError(f"level: the picture of level {level} is not in the store; freescale resume {run} makes it")
    if isinstance(stage, Export):
        return lambda partial: _rewrite(home.store.file_path(stored.key, file_name(stored.call)), partial, stage)
    assert isinstance(made, ExportVideo)
    raise SpecError(
        f"level: the frames of level {level} were pruned; its file as {made.format} is in {home.outputs(run)}"
    )


def _rewrite(source: Path, path: Path, stage: Export) -> None:
    with Image.open(source) as picture:
        path.write_bytes(encode_file(picture, stage.format, stage.description))


def _exporting(call: Call, format: str | None, out: Path, how: dict[str, Any]) -> Export | ExportVideo:
    """The export of a level in the format that is named, or that the suffix of `out` means, checked."""
    stage = call.stage
    assert isinstance(stage, Export | ExportVideo)
    allowed, default = _suffixes(stage), "png" if isinstance(stage, Export) else stage.format
    if format is None:
        given = out.suffix.lower() if not out.is_dir() else ""
        meant = [name for name, suffix in allowed.items() if suffix == ALSO.get(given, given)]
        format = meant[0] if meant and default not in meant else default
        if given and not meant:
            suffix = allowed[nearest(given, allowed) or default]
            known = ", ".join(dict.fromkeys(allowed.values()))
            raise SpecError(
                f"out: {str(out)!r} does not end in one of {known}; {out.with_suffix(suffix).name!r} would work"
            )
    if format not in allowed:
        raise SpecError(f"format: {not_one_of(format, allowed)}")
    if isinstance(stage, Export):
        if how:
            raise SpecError(f"{next(iter(how))}: is for videos, and this run made a picture")
        return dataclasses.replace(stage, format=format)
    checked = make_spec({"prompt": "video", "format": format, **how})
    check_encoding(format, call.size, checked.pixel_format)
    fps = checked.fps or stage.fps
    return dataclasses.replace(stage, format=format, fps=fps, crf=checked.crf, pixel_format=checked.pixel_format)
