"""A comparison as a folder to open, copy or send: contact sheet, one page with synchronised zoom, all that is known.

`index.html` needs no server and no network; the pictures lie beside it as the files that the runs made.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from flows.batch import aside
from flows.session import place
from flows.tiles import write_pyramid
from stages.runner import key_of
from stages.spec import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flows.batch import State
    from flows.comparison import Cell, Comparison
    from flows.session import Home

PAGE, SHEET, RECORD = "index.html", "contact-sheet.png", "comparison.json"
FILE = "picture.png"  # of an export
THUMBNAIL, SMALLEST, SHEET_SIDE = 256, 16, 16_384  # pixels
MARGIN, LINE = 8, 20
MOST_ROWS = (SHEET_SIDE - 2 * LINE) // (SMALLEST + LINE + MARGIN)


def check_out(folder: Path, comparison: Comparison, overwrite: bool) -> None:
    """Refuse a folder that holds another comparison, or files of somebody else. Raises `SpecError`."""
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"out: {str(folder)!r} is not a folder")
    taken = [name for name in (RECORD, PAGE, SHEET) if (folder / name).exists()]
    if not taken or overwrite:
        return
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        ours = isinstance(known, dict) and known.get("comparison") == comparison.name
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise SpecError(f"out: {str(folder / taken[0])!r} is of another comparison; name another folder or overwrite")


def write(folder: Path, comparison: Comparison, states: Mapping[str, State], home: Home) -> list[Path]:
    """Write what is there so far; a picture that is not there yet says why. Return page, sheet and record."""
    record = as_json(folder, comparison, states, home)
    return [
        place(html("compare", comparison.name, record).encode(), folder / PAGE),
        place(contact_sheet(folder, record), folder / SHEET),
        place((json.dumps(record, indent=1) + "\n").encode(), folder / RECORD),
    ]


def as_json(folder: Path, comparison: Comparison, states: Mapping[str, State], home: Home) -> dict[str, Any]:
    """The comparison with every cell's run, state, seconds and picture; copies the pictures under `folder`."""
    return {
        "comparison": comparison.name,
        "methods": [entry.label for entry in comparison.spec.methods],
        "spec": comparison.spec.model_dump(mode="json"),
        "rows": [
            {
                "prompt": row.prompt,
                "seed": row.seed,
                "size": f"{row.size[0]}x{row.size[1]}",
                "cells": [_cell(folder, cell, states[cell.run], home) for cell in row.cells],
            }
            for row in comparison.rows
        ],
    }


def _cell(folder: Path, cell: Cell, state: State, home: Home) -> dict[str, Any]:
    found: dict[str, Any] = {"method": cell.label, "run": cell.run, "state": state}
    if state == "set aside":
        found["error"] = json.loads(aside(home, cell.run).read_text(encoding="utf-8"))["error"]
    if state == "done":
        found["seconds"] = cost(home, cell.run)
        export = cell.order.job.plan.exports[-1]
        data = home.store.read_file(key_of(export), FILE)
        found["picture"] = write_pyramid(data, folder, cell.run).as_json()
    return found


def cost(home: Home, run: str) -> float | None:
    """Seconds to make every stage of a run, or None where one was interrupted or is gone."""
    total = 0.0
    for call in home.runs.load(run).plan:
        manifest = home.store.find(call.key)
        if manifest is None or manifest.seconds is None or manifest.resumed_at:
            return None
        total += manifest.seconds
    return total


def html(page: str, title: str, data: dict[str, Any]) -> str:
    """One of the pages of `flows/pages` with style, scripts and data in it; the data cannot break out of its tag."""
    source = files("flows") / "pages"
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": escape(title),
        "style": (source / "style.css").read_text(encoding="utf-8"),
        "viewer": (source / "viewer.js").read_text(encoding="utf-8"),
        "data": text,
    }
    made = (source / f"{page}.html").read_text(encoding="utf-8")
    for name, value in parts.items():  # the data last: nothing in it is looked at again
        made = made.replace(f"%{name}%", value)
    return made


def contact_sheet(folder: Path, record: dict[str, Any]) -> bytes:
    """A PNG with a row of thumbnails for every prompt, as many as there is room for, a column for every method."""
    rows, labels = record["rows"][:MOST_ROWS], record["methods"]
    side = max(SMALLEST, min(THUMBNAIL, SHEET_SIDE // (max(len(rows), len(labels)) + 1) - MARGIN - LINE))
    width = MARGIN + len(labels) * (side + MARGIN)
    sheet = Image.new("RGB", (width, 2 * LINE + len(rows) * (side + LINE + MARGIN)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, label in enumerate(labels):
        pen.text((MARGIN + column * (side + MARGIN), 3), _fitted(label, side, font), "black", font)
    for number, row in enumerate(rows):
        top = LINE + number * (side + LINE + MARGIN)
        pen.text((MARGIN, top + 3), _fitted(_caption(row), width - 2 * MARGIN, font), "black", font)
        for column, cell in enumerate(row["cells"]):
            left = MARGIN + column * (side + MARGIN)
            if "picture" in cell:
                with Image.open(folder / cell["picture"]["thumbnail"]) as picture:
                    small = picture.convert("RGB")
                small.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.paste(small, (left, top + LINE))
            else:
                pen.rectangle((left, top + LINE, left + side - 1, top + LINE + side - 1), outline="#c33")
                pen.text((left + 4, top + LINE + 4), _fitted(cell["state"], side - 8, font), "#c33", font)
    if len(rows) < len(record["rows"]):
        pen.text((MARGIN, sheet.height - LINE), f"{len(record['rows']) - len(rows)} more on the page", "black", font)
    out = BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _caption(row: dict[str, Any]) -> str:
    return f"{row['prompt']}  ·  seed {row['seed']}  ·  {row['size']}"


def _fitted(text: str, width: int, font: Any) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
