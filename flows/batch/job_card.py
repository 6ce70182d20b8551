"""A job on a page: how it ended, its picture or video copied beside the page, or why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.batch.set_aside import read_set_aside
from flows.pages.pyramid import write_pyramid
from flows.rendering.costs import cost
from flows.rendering.export import file_name
from flows.rendering.files import copy_whole
from stages.export_video import WEBP, ExportVideo
from stages.spec import LOSSY
from storage import ArtifactNotFoundError, DamagedArtifactError

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job


def job_card(folder: Path, job: Job, state: str, home: Home) -> dict[str, Any]:
    """What a page shows of a job: run, state, seconds, and its picture or the reason why there is none.

    The picture or video is copied under `folder`, and its paths are relative to that. A damaged one has the state
    `damaged` and the command that makes it again.
    """
    found: dict[str, Any] = {"run": job.run, "state": state}
    if state == "set aside":
        found |= read_set_aside(home, job.run)
    if state == "done":
        spent = cost(home.store, job.plan)
        found["seconds"] = None if spent is None else spent.seconds
        try:
            found |= _made(folder, job, home)
        except (DamagedArtifactError, ArtifactNotFoundError) as error:  # one picture less, not a page less
            found |= {"state": "damaged", "error": str(error), "again": f"freescale resume {job.run}"}
    return found


def _made(folder: Path, job: Job, home: Home) -> dict[str, Any]:
    """The picture or video of a job that is done, copied under `folder`."""
    export = job.plan.exports[-1]
    if isinstance(export.stage, ExportVideo):
        return {"video": _video(folder, job, export.stage, home)}
    data = home.store.read_file(export.key, file_name(export))
    return {"picture": write_pyramid(data, folder, job.run, Path(file_name(export)).suffix).as_json()}


def _video(folder: Path, job: Job, export: ExportVideo, home: Home) -> dict[str, Any]:
    """What a page shows of a video: its file and the animated preview, copied under `folder`."""
    key = job.plan.exports[-1].key
    copies = {}
    for name in (export.file_name, WEBP):
        copies[name] = f"pictures/{job.run}{Path(name).suffix}"
        copy_whole(home.store.file_path(key, name), folder / copies[name])
    return {
        "file": copies[export.file_name],
        "thumbnail": copies[WEBP],
        "plays": export.format in LOSSY,
        "width": job.spec.width,
        "height": job.spec.height,
        "frames": job.spec.frames,
        "fps": export.fps,
    }
