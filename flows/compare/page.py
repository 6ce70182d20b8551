"""A comparison as a folder to open, copy or send: contact sheet, one page with synchronised zoom, a record in JSON.

`index.html` needs no server and no network; the pictures lie beside it as the files that the runs made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flows.batch.job_card import job_card
from flows.home import check_folder
from flows.pages.html import contact_sheet, html
from flows.rendering.files import write_whole
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flows.batch.runner import State
    from flows.compare.layout import Comparison
    from flows.home import Home

PAGE, SHEET, RECORD = "index.html", "contact-sheet.png", "comparison.json"


def check_out(folder: Path, comparison: Comparison, overwrite: bool) -> None:
    """Raise `SpecError` for a folder that holds another comparison or other files, unless `overwrite`."""
    check_folder("out", folder)
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
    """Write what is there so far; in place of a missing picture stands the reason. Return page, sheet and record."""
    record = as_json(folder, comparison, states, home)
    sheet = [(row.name, cells["cells"]) for row, cells in zip(comparison.rows, record["rows"], strict=True)]
    return [
        write_whole(html("compare", comparison.name, record).encode(), folder / PAGE),
        write_whole(contact_sheet(folder, record["methods"], sheet), folder / SHEET),
        write_whole((json.dumps(record, indent=1) + "\n").encode(), folder / RECORD),
    ]


def as_json(folder: Path, comparison: Comparison, states: Mapping[str, State], home: Home) -> dict[str, Any]:
    """The record of a comparison: every cell's run, state, seconds and picture. Copies the pictures under `folder`."""
    return {
        "comparison": comparison.name,
        "methods": [entry.label for entry in comparison.spec.methods],
        "spec": comparison.spec.model_dump(mode="json"),
        "rows": [
            {
                "prompt": row.prompt,
                "seed": row.seed,
                "size": f"{row.size[0]}x{row.size[1]}",
                "cells": [
                    {"method": cell.label} | job_card(folder, cell.queued.job, states[cell.run], home)
                    for cell in row.cells
                ],
            }
            for row in comparison.rows
        ],
    }
