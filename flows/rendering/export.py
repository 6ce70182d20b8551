"""The pictures and videos of a run as files: their names, where they go, and a level in another format."""

from __future__ import annotations

import dataclasses
import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.export import SUFFIXES, Export, check_whole, write_picture
from stages.export_video import ExportVideo, encode_video
from stages.media.ffmpeg import check_encoding
from stages.spec import VIDEO_FORMATS, RenderSpec, make_spec
from storage import whole_file

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.call import Call


def file_name(export: Call) -> str:
    """The name of an export's picture or video in its artifact."""
    assert isinstance(export.stage, Export | ExportVideo)
    return export.stage.file_name


def target_path(out: Path | None, job: Job, home: Home, overwrite: bool) -> Path | None:
    """Where the last picture goes; a folder gets the run's name. An existing file is kept unless this run made it."""
    if out is None:
        return None
    suffix, path = Path(file_name(job.plan.exports[-1])).suffix, path_in(out, job)
    if path.suffix.lower() != suffix:
        raise SpecError(f"out: {str(path)!r} does not end in {suffix}, the format of this render")
    if path.exists() and not overwrite and not _made_by(path, job, home):
        raise SpecError(f"out: {str(path)!r} exists and is not this run's; choose another name or say --overwrite")
    return path.absolute()


def path_in(out: Path, job: Job, name: str | None = None) -> Path:
    """Return `out`, or where it is a folder, the path in it of the last picture, which has `name` or the run's name."""
    if out.suffix and not out.is_dir():
        return out
    return out / f"{name or job.run}{Path(file_name(job.plan.exports[-1])).suffix}"


def _made_by(path: Path, job: Job, home: Home) -> bool:
    export = job.plan.exports[-1]
    if home.store.find(export.key) is None or not path.is_file():
        return False
    return filecmp.cmp(path, home.store.file_path(export.key, file_name(export)), shallow=False)


def export_level(
    home: Home, spec: RenderSpec, format: str | None, level: int | None, out: Path, overwrite: bool, **how: Any
) -> Path:
    """Write the picture or video of one level of a run in another format; return its path.

    `level` counts from 0, None is the last. `how` may hold `fps`, `crf` and `pixel_format` for a video. Raises
    `SpecError` where the level, the format or `out` is refused, or where the level's picture is not in the store.
    """
    job = prepare(spec.model_copy(update={"crf": None, "pixel_format": None}), home)
    levels = range(len(job.plan.exports))
    if level is not None and level not in levels:
        raise SpecError(f"level: {level} is not one of {', '.join(map(str, levels))}")
    call = job.plan.exports[-1 if level is None else level]
    stage = _exporting(call, format, {name: value for name, value in how.items() if value is not None})
    image = call.parents["image"]
    if home.store.find(image.key) is None:
        raise SpecError(
            f"level: the picture of level {call.level} is not in the store; freescale resume {job.run} makes it"
        )
    suffix = Path(stage.file_name).suffix
    path = out / f"{job.run}-level-{call.level}{suffix}" if out.is_dir() or not out.suffix else out
    if path.exists() and not overwrite:
        raise SpecError(f"out: {str(path)!r} exists; choose another name or say --overwrite")
    path = path.absolute()
    if isinstance(stage, Export):
        check_whole(stage.format, call.size)
        picture = home.store.open_pictures(image.key)["image"]
        with whole_file(path, suffix) as partial:
            write_picture(partial, picture, stage)
        return path
    video = home.store.open_frames(image.key)["image"]
    with whole_file(path, suffix) as partial:
        encode_video(partial, video, stage)
    return path


def _exporting(call: Call, format: str | None, how: dict[str, Any]) -> Export | ExportVideo:
    """The export of a level in another format, checked."""
    stage = call.stage
    if isinstance(stage, Export):
        if how:
            raise SpecError(f"{next(iter(how))}: is for videos, and this run made a picture")
        if format is not None and format not in SUFFIXES:
            raise SpecError(f"format: {format!r} is not one of {', '.join(SUFFIXES)}")
        return dataclasses.replace(stage, format=format or "png")
    assert isinstance(stage, ExportVideo)
    format = format or stage.format
    if format not in VIDEO_FORMATS:
        raise SpecError(f"format: {format!r} is not one of {', '.join(VIDEO_FORMATS)}")
    checked = make_spec({"prompt": "video", "format": format, **how})
    check_encoding(format, call.size, checked.pixel_format)
    fps = checked.fps or stage.fps
    return dataclasses.replace(stage, format=format, fps=fps, crf=checked.crf, pixel_format=checked.pixel_format)
