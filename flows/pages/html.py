"""The parts of pages: a template with its data in it, and contact sheets."""

from __future__ import annotations

import json
from bisect import bisect_right
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

THUMBNAIL, SMALLEST, SHEET_SIDE = 256, 16, 16_384  # pixels
MARGIN, LINE = 8, 20
MOST_ROWS = (SHEET_SIDE - 2 * LINE) // (SMALLEST + LINE + MARGIN)


def html(page: str, title: str, data: dict[str, Any]) -> str:
    """One of the pages of `flows/pages` as text, with style, scripts and data in it. The data cannot end its tag."""
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
    for name, value in parts.items():  # the data last, so that nothing in it is replaced
        made = made.replace(f"%{name}%", value)
    return made


def contact_sheet(folder: Path, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> bytes:
    """A PNG of thumbnails: for every row a caption and its job cards (`flows/batch/job_card.py`), while there is room.

    `folder` holds the thumbnails that the cards name; `heads` are the titles of the columns.
    """
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
    """Return the text, cut to what is at most `width` pixels wide; "" where no letter is."""
    if font.getlength(text) <= width:
        return text
    cuts = [text[:end].rstrip() + "…" for end in range(1, len(text) - 1)]
    fitting = bisect_right(cuts, width, key=font.getlength)
    return cuts[fitting - 1] if fitting else ""
