"""What pages are made of: a template with its data in it, contact sheets, and a run's picture with what it cost."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from flows.batch.runner import aside
from flows.pages.pyramid import write_pyramid
from flows.rendering.costs import cost
from flows.rendering.session import file_name, place_copy
from stages.export_video import WEBP, ExportVideo
from stages.spec import LOSSY
from storage import ArtifactNotFoundError, DamagedArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.batch.runner import State
    from flows.home import Home
    from flows.rendering.session import Job

THUMBNAIL, SMALLEST, SHEET_SIDE = 256, 16, 16_384  # pixels
MARGIN, LINE = 8, 20
MOST_ROWS = (SHEET_SIDE - 2 * LINE) // (SMALLEST + LINE + MARGIN)


def html(page: str, title: str, data: dict[str, Any]) -> str:
    """One of the pages of `flows/pages` with style, scripts and data in it; the data cannot break out of its tag."""
    source = files("flows") / "pages"
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": escape(title),
        "style": (source / "style.css").read_text(encoding="utf-8"),
        "viewer": (source / "viewer.js").read_text(encoding="utf-8"),
        "videos": (source / "videos.js").read_text(encoding="utf-8"),
        "data": text,
    }
    made = (source / f"{page}.html").read_text(encoding="utf-8")
    for name, value in parts.items():  # the data last: nothing in it is looked at again
        made = made.replace(f"%{name}%", value)
    return made


def shown(folder: Path, job: Job, state: State, home: Home) -> dict[str, Any]:
    """A job's run, state and cost, and its picture, copied under `folder`, or why there is none."""
    found: dict[str, Any] = {"run": job.run, "state": state}
    if state == "set aside":
        found |= json.loads(aside(home, job.run).read_text(encoding="utf-8"))
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
        place_copy(home.store.file_path(key, name), folder / copies[name])
    return {
        "file": copies[export.file_name],
        "thumbnail": copies[WEBP],
        "plays": export.format in LOSSY,
        "width": job.spec.width,
        "height": job.spec.height,
        "frames": job.spec.frames,
        "fps": export.fps,
    }


def contact_sheet(folder: Path, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> bytes:
    """A PNG of thumbnails: a caption and the cells of `shown` for every row, as many as there is room for."""
    kept = rows[:MOST_ROWS]
    columns = max(len(cells) for _, cells in rows)
    side = max(SMALLEST, min(THUMBNAIL, SHEET_SIDE // (max(len(kept), columns) + 1) - MARGIN - LINE))
    width = MARGIN + columns * (side + MARGIN)
    sheet = Image.new("RGB", (width, 2 * LINE + len(kept) * (side + LINE + MARGIN)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, head in enumerate(heads):
        pen.text((MARGIN + column * (side + MARGIN), 3), _fitted(head, side, font), "black", font)
    for number, (caption, cells) in enumerate(kept):
        top = LINE + number * (side + LINE + MARGIN)
        pen.text((MARGIN, top + 3), _fitted(caption, width - 2 * MARGIN, font), "black", font)
        for column, cell in enumerate(cells):
            left = MARGIN + column * (side + MARGIN)
            if (made := cell.get("picture") or cell.get("video")) is not None:
                with Image.open(folder / made["thumbnail"]) as picture:  # of a video its first frame
                    small = picture.convert("RGB")
                small.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.paste(small, (left, top + LINE))
            else:
                pen.rectangle((left, top + LINE, left + side - 1, top + LINE + side - 1), outline="#c33")
                pen.text((left + 4, top + LINE + 4), _fitted(cell["state"], side - 8, font), "#c33", font)
    if len(kept) < len(rows):
        pen.text((MARGIN, sheet.height - LINE), f"{len(rows) - len(kept)} more on the page", "black", font)
    out = BytesIO()
    sheet.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _fitted(text: str, width: int, font: Any) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
